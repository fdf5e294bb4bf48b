"""What there is to be done for an event, as a real STAC API answers; the last version's product is written here."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import geopandas as gpd
import pytest
from shapely.geometry import box
from stac_server import files_of

from catalog.config import parse_config
from catalog.policy import Policy, load_policy
from catalog.responses import Response, after_version, read_response, write_area, write_response
from flows.respond import as_markdown
from tasks.outlook import detection_of, look, version_of


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("catalog.web.PAUSE_S", 0.01)


def outlook(followed, **changes):
    policy = load_policy(followed.policy)
    return look(Policy(**{**policy.model_dump(), **changes}), followed.event.id, now=datetime.now(UTC))


def part(followed, **changes):
    (found,) = outlook(followed, **changes).parts
    return found


def publish(followed):
    """A version of what is there, whose product saw all of its scenes' ground."""
    policy, found = load_policy(followed.policy), part(followed)
    folder = followed.folder / "out" / followed.event.id / "v1"
    folder.mkdir(parents=True)
    seen = [scene.footprint for scene in found.post.scenes]
    gpd.GeoDataFrame(geometry=seen, crs=4326).to_file(folder / "inventory.gpkg", layer="observed_area")
    detection_of(policy, followed.event, found)
    version = version_of(policy, followed.event.id, found, product=str(folder), now=datetime.now(UTC))
    known = read_response(followed.state, followed.event.id) or Response(event_id=followed.event.id)
    write_response(followed.state, after_version(known, version))
    return version


@pytest.fixture
def west(followed):
    """The event with a version of the western scene."""
    followed.api.serve(followed.item("pre", days=-20), followed.item("west", days=1))
    publish(followed)
    return followed


def test_look_before_any_imagery(followed):
    followed.api.serve()
    found = part(followed)
    assert not found.improves
    assert found.why == "no post-event imagery yet that shows the area"
    (expected,) = outlook(followed).expected
    assert expected.endswith("not known, it is acquired on order")


def test_as_markdown_leaves_a_strangers_text_no_meaning(followed):
    followed.api.serve()
    found = outlook(followed)
    event = found.event.model_copy(update={"title": "M 6 - <img src=x> [a](javascript:b)"})
    parts = (replace(found.parts[0], told=("an API says <b>\n\n# [now](x)",)),)
    text = as_markdown(replace(found, event=event, parts=parts))
    assert "<" not in text
    assert "an API says &lt;b&gt; \\# \\[now" in text
    assert "[" not in text.replace("\\[", "")


def test_detection_of_a_plan_is_a_configuration(followed):
    followed.api.serve(followed.item("pre", days=-20), followed.item("west", days=1))
    config = parse_config(detection_of(load_policy(followed.policy), followed.event, part(followed)))
    assert (config.name, config.sensor, config.block_px) == (followed.event.id, "rgb8", 256)
    assert [Path(path).name for path in (*config.post, *config.pre, config.aoi)] == [
        "post.json", "pre.json", "area.geojson",
    ]  # fmt: skip
    assert all(Path(path).is_file() for path in (*config.post, *config.pre, config.aoi))


def test_look_again_finds_nothing_better(west):
    found = part(west)
    assert not found.improves
    assert found.key == found.last.key
    assert found.why.startswith("nothing that is better than v1")


def test_look_names_only_the_blocks_that_a_new_scene_touches(west):
    west.api.serve(west.item("pre", days=-20), west.item("west", days=1), west.item("east", days=2))
    found = part(west)
    east = next(scene for scene in found.post.scenes if scene.id == "east")
    touched = {g.id for g in found.grounds if g.missing.intersection(east.footprint).area > 0.02 * g.outline.area}
    assert set(found.reasons) == touched
    assert touched < {ground.id for ground in found.grounds}
    assert [scene.id for scene in found.post.scenes] == ["west", "east"]


def test_look_takes_a_corrected_scene(west):
    west.api.serve(west.item("pre", days=-20), west.item("west", days=1, updated="2024-03-01T00:00:00Z"))
    found = part(west)
    assert set(found.counted()) == {"scene corrected"}
    assert found.post.scenes[0].state == "2024-03-01T00:00:00Z"


def test_look_lets_a_withdrawn_scene_go(west):
    west.api.serve(west.item("pre", days=-20), west.item("east", days=2))
    found = part(west)
    assert "scene withdrawn" in found.counted()
    assert [scene.id for scene in found.post.scenes] == ["east"]
    assert any("west is withdrawn" in sentence for sentence in found.told)


def test_look_keeps_the_version_when_every_scene_is_withdrawn(west):
    west.api.serve()
    found = part(west)
    assert not found.improves
    assert found.why == "every scene of v1 is withdrawn and there is no other: v1 stays"


def test_look_takes_no_silence_for_a_withdrawal(west):
    imagery = west.imagery()
    (source,) = imagery["sources"]
    west.api.stop()
    with west.second_api(west.item("east", days=2)) as second:
        found = part(west, imagery={**imagery, "sources": [source, {**source, "url": second}]})
    assert [scene.id for scene in found.post.scenes] == ["west", "east"]
    assert "scene withdrawn" not in found.counted()


def with_addresses(item, base):
    """The item, its files elsewhere."""
    assets = {key: {**asset, "href": f"{base}/west.tif"} for key, asset in item["assets"].items()}
    return {**item, "assets": assets}


def addresses(scene):
    return {asset["href"] for asset in scene.item["assets"].values()}


def test_look_reads_a_scene_where_it_is_listed_now(west):
    moved = with_addresses(west.item("west", days=1), f"http://{west.host}/signed/2")
    west.api.serve(west.item("pre", days=-20), moved, west.item("east", days=2))
    found = part(west)
    assert [scene.id for scene in found.post.scenes] == ["west", "east"]
    assert addresses(found.post.scenes[0]) == {f"http://{west.host}/signed/2/west.tif"}
    west.api.serve(west.item("pre", days=-20), moved)
    again = part(west)
    assert (again.improves, again.key) == (False, again.last.key)  # the same picture: no reason for a version


def test_look_goes_on_with_other_imagery_when_a_host_is_allowed_no_more(west):
    with files_of(west.folder / "files") as other:
        east = with_addresses(west.item("east", days=2), f"http://{other}")
        west.api.serve(west.item("pre", days=-20), west.item("west", days=1), east)
        found = part(west, hosts=(other,))
    assert [scene.id for scene in found.post.scenes] == ["east"]
    assert any("west is used no more" in sentence and "not allowed" in sentence for sentence in found.told)


def test_look_stays_with_the_version_when_no_host_is_allowed_any_more(west):
    found = part(west, hosts=())
    assert found.why == "every scene of v1 is withdrawn and there is no other: v1 stays"


def test_look_at_one_area_goes_on_where_the_other_cannot_be_looked_at(followed):
    followed.api.serve(followed.item("west", days=1))
    folder = Path(followed.state) / followed.event.id
    (folder / "area.geojson").rename(folder / "area-32654.geojson")
    write_area(folder / "area-32799.geojson", followed.area)  # no such zone
    found = outlook(followed)
    assert [part.part.epsg for part in found.parts] == [32654]
    assert "32799: unexpected CRSError" in found.failed[0]


def test_look_goes_without_a_scene_that_the_policy_excludes(west):
    west.api.serve(west.item("pre", days=-20), west.item("west", days=1), west.item("east", days=2))
    found = part(west, imagery={**west.imagery(), "exclude": ["west"]})
    assert [scene.id for scene in found.post.scenes] == ["east"]
    assert "scene withdrawn" in found.counted()


def test_look_at_a_revised_area(west):
    minx, miny, maxx, maxy = west.area.bounds
    wider = box(minx - 0.01, miny, maxx, maxy)
    write_area(Path(west.state) / west.event.id / "area.geojson", wider)
    assert "area revised" in part(west).counted()


def test_look_with_another_model(west):
    detection = load_policy(west.policy).detection
    found = part(west, detection={**detection, "model": "mffenet-b3"})
    assert set(found.counted()) == {"another model"}
    assert found.key != found.last.key
