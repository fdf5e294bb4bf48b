"""From an empty machine: `landslidenet up`, an earthquake in the feed, imagery in a STAC API, and nobody's hand.

The Prefect UI is watched in Chromium; its pages are kept in the folder that LANDSLIDENET_SCREENS names, if it does.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import geopandas as gpd
import httpx
import numpy as np
import pytest
import rasterio
import yaml
from prefect_server import ROOT
from processes import free_port, wait_until
from stac_server import COLLECTION, StacApi, cog_of, files_of, item_of

from catalog.events import load_event
from tasks.review import simulate_event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SIDE, HIDDEN, BLOCK = 768, 240, 256
EVENT_ID = "us7000test"
TITLE = f"{EVENT_ID} M6.4 5 km N of Nowhere"
STRUCK = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
WATCH_EVERY_S = 75
CHROMIUM = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()), None)


def shaking(event, *, host):
    """A ShakeMap grid in USGS's form: strong within some 6 km of the epicentre, and what ComCat says of it."""
    step, half = 0.01, 15
    offsets = np.arange(-half, half + 1) * step
    rows = []
    for dy in offsets[::-1]:
        for dx in offsets:
            far_km = 111.2 * np.hypot(dy, dx * np.cos(np.radians(event.latitude)))
            pga = 60.0 * np.exp(-far_km / 3.5)
            rows.append(f"{event.longitude + dx:.4f} {event.latitude + dy:.4f} {3 + pga / 12:.2f} {pga:.3f}")
    count, west, south = len(offsets), event.longitude + offsets[0], event.latitude + offsets[0]
    grid = (
        '<?xml version="1.0" encoding="US-ASCII" standalone="yes"?>'
        f'<shakemap_grid xmlns="http://earthquake.usgs.gov/eqcenter/shakemap" event_id="{EVENT_ID}">'
        f'<grid_specification lon_min="{west:.4f}" lat_min="{south:.4f}" lon_max="{west + 2 * half * step:.4f}" '
        f'lat_max="{south + 2 * half * step:.4f}" nominal_lon_spacing="{step}" nominal_lat_spacing="{step}" '
        f'nlon="{count}" nlat="{count}"/>'
        '<grid_field index="1" name="LON" units="dd"/><grid_field index="2" name="LAT" units="dd"/>'
        '<grid_field index="3" name="MMI" units="intensity"/><grid_field index="4" name="PGA" units="%g"/>'
        "<grid_data>\n" + "\n".join(rows) + "\n</grid_data></shakemap_grid>"
    )
    product = {
        "code": EVENT_ID, "source": "us", "updateTime": ms(STRUCK + timedelta(hours=1)), "status": "UPDATE",
        "preferredWeight": 100, "properties": {"version": "1"},
        "contents": {"download/grid.xml": {"url": f"http://{host}/grid.xml", "length": len(grid)}},
    }  # fmt: skip
    return grid, {"shakemap": [product]}


def ms(time):
    return int(time.timestamp() * 1000)


def quake(event, **more):
    """A feature as ComCat serves it."""
    properties = {
        "mag": 6.4, "place": "5 km N of Nowhere", "time": ms(STRUCK), "updated": ms(STRUCK + timedelta(hours=2)),
        "status": "reviewed", "type": "earthquake", "ids": f",{EVENT_ID},", "types": ",origin,shakemap,",
        "title": "M 6.4 - 5 km N of Nowhere", **more,
    }  # fmt: skip
    point = {"type": "Point", "coordinates": [event.longitude, event.latitude, 10.0]}
    return {"type": "Feature", "id": EVENT_ID, "properties": properties, "geometry": point}


class Place:
    """Files on a server, a STAC API, and a policy that names both."""

    def __init__(self, folder, host):
        self.folder, self.host, self.api = folder, host, StacApi(folder / "api")
        scene = simulate_event(folder / "scene", size_px=SIDE, gsd_m=10.0, seed=7, sensor="rgb8")
        event = load_event(str(scene["event"]))
        with rasterio.open(scene["post"]) as tif:
            middle = gpd.GeoSeries.from_xy([tif.bounds.left + 5 * SIDE], [tif.bounds.top - 5 * SIDE], crs=tif.crs)
        centre = middle.to_crs(4326).iloc[0]
        event = event.model_copy(update={"longitude": centre.x, "latitude": centre.y})
        grid, products = shaking(event, host=host)
        files = folder / "files"
        (files / "grid.xml").write_text(grid)
        (files / "query").write_text(json.dumps(quake(event, products=products)))
        (files / "feed.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [quake(event)]}))
        hidden = folder / "hidden.tif"
        shutil.copy(scene["post"], hidden)
        with rasterio.open(hidden, "r+") as tif:
            tif.nodata = 0
            pixels = tif.read()
            pixels[:, :HIDDEN, :HIDDEN] = 0
            tif.write(pixels)
        for name, source in (("pre", scene["pre"]), ("hazy", hidden), ("clear", scene["post"])):
            cog_of(source, files / f"{name}.tif", columns=(0, HIDDEN / SIDE) if name == "clear" else (0, 1))
        self.policy = folder / "policy.yaml"
        self.policy.write_text(yaml.safe_dump(self.rules(scene)))

    def rules(self, scene):
        return {
            "root": str(self.folder / "store"), "out": str(self.folder / "products"),
            "state": str(self.folder / "state"), "hosts": [self.host],
            "earthquakes": {"feed": f"http://{self.host}/feed.geojson", "query": f"http://{self.host}/query"},
            "imagery": {
                "sources": [{"url": self.api.url, "collection": COLLECTION, "sensor": "rgb8"}],
                "first_pause_minutes": 0.2, "longest_pause_minutes": 0.5,
            },
            "detection": {"block": BLOCK, "workers": 1, "gsd": 10.0, "dem": str(scene["dem"])},
        }  # fmt: skip

    def item(self, name, *, days, cloud):
        taken = STRUCK + timedelta(days=days)
        path = self.folder / f"files/{name}.tif"
        return item_of(path, f"http://{self.host}", item_id=name, taken=taken, **{"eo:cloud_cover": cloud})

    def version(self, number):
        folder = self.folder / f"products/{EVENT_ID}/v{number}"
        return folder if (folder / "run.json").is_file() else None


@contextmanager
def service(folder, policy):
    """`landslidenet up`, its watchers in a hurry; what comes out is the address of its UI."""
    port = free_port()
    command = [sys.executable, "-c", "from flows.cli import main; main()", "up", "--port", str(port)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    with (folder / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--home", str(folder / "home"), "--policy", str(policy)],
            env={**kept, "PYTHONPATH": str(ROOT)}, cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: url in (folder / "up.log").read_text().split(), within_s=300, what="service")
        for deployment in httpx.post(f"{url}/api/deployments/filter", json={}, timeout=60).json():
            for schedule in deployment["schedules"] if deployment["name"].startswith("watch-") else ():
                path = f"{url}/api/deployments/{deployment['id']}/schedules/{schedule['id']}"
                told = httpx.patch(path, json={"schedule": {"interval": WATCH_EVERY_S}}, timeout=60)
                assert told.status_code < 400, told.text
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0, (folder / "up.log").read_text()


def look(url, *, label, folder):
    """See in a browser that the UI shows the run, its decision, map and difference; the folder keeps the pages."""
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "no Chromium on this machine"
        return
    from playwright.sync_api import sync_playwright

    folder.mkdir(exist_ok=True)
    told = {"sort": "CREATED_DESC", "limit": 200}
    latest = {}
    for artifact in httpx.post(f"{url}/api/artifacts/filter", json=told, timeout=60).json():
        latest.setdefault(artifact["key"], artifact["id"])
    words = {"response": TITLE, "map": "landslides", "stages": "inference", "earthquakes": "is at least 6"}
    pages = {name: (f"/artifacts/artifact/{latest[name]}", text) for name, text in words.items()}
    pages |= {"runs": ("/runs", f"{TITLE} {label}"), "automations": ("/automations", "alert")}
    if label != "v1":
        pages["difference"] = (f"/artifacts/artifact/{latest['difference']}", "Since version 1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        for name, (path, text) in pages.items():
            page.goto(url + path)
            page.get_by_text(text).first.wait_for(timeout=90_000)
            page.screenshot(path=folder / f"{label}-{name}.png")
        browser.close()


def stages(folder):
    told = json.loads((folder / "run.json").read_text())["provenance"]["stages"]
    return {stage["stage"]: stage for stage in told}


def test_earthquake_and_imagery_become_versions_without_a_hand(tmp_path):
    (tmp_path / "files").mkdir()
    screens = Path(os.environ.get("LANDSLIDENET_SCREENS", tmp_path / "screens"))
    with files_of(tmp_path / "files") as host:
        place = Place(tmp_path, host)
        try:
            place.api.serve(place.item("pre", days=-20, cloud=0.0), place.item("hazy", days=1, cloud=10.0))
            with service(tmp_path, place.policy) as url:
                first = wait_until(lambda: place.version(1), within_s=600, what="version 1")
                wait_until(lambda: not running(url), within_s=120, what="end of the first run")
                look(url, label="v1", folder=screens)
                scenes = [("pre", -20, 0.0), ("hazy", 1, 10.0), ("clear", 2, 0.0)]
                place.api.serve(*(place.item(name, days=days, cloud=cloud) for name, days, cloud in scenes))
                second = wait_until(lambda: place.version(2), within_s=600, what="version 2")
                wait_until(lambda: not running(url), within_s=120, what="end of the run")
                look(url, label="v2", folder=screens)
                runs = httpx.post(f"{url}/api/flow_runs/filter", json={}, timeout=60).json()
        finally:
            place.api.stop()
    assert not [run["name"] for run in runs if run["state_type"] in ("FAILED", "CRASHED")]
    assert [run["name"] for run in runs if run["name"].startswith(f"{TITLE} v")]
    assert place.version(3) is None
    before, after = stages(first), stages(second)
    assert before["inference"]["blocks_taken_over"] == 0
    assert 0 < after["inference"]["blocks"] - after["inference"]["blocks_taken_over"] < after["inference"]["blocks"] / 2
    difference = json.loads((second / "run.json").read_text())["difference"]
    assert difference["newly_observed_m2"] > 0.5 * (HIDDEN * 10) ** 2
    table = gpd.read_file(second / "inventory.gpkg", layer="changes").set_index("id")
    old = gpd.read_file(first / "inventory.gpkg", layer="landslides")
    far = old[old.representative_point().x > old.total_bounds[0] + 0.6 * (old.total_bounds[2] - old.total_bounds[0])]
    assert len(far) > 0
    assert (table.loc[far["id"], "change"] == "unchanged").all()


def running(url):
    told = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
    names = [run["name"] for run in httpx.post(f"{url}/api/flow_runs/filter", json=told, timeout=60).json()]
    return [name for name in names if EVENT_ID in name]
