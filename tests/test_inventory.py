import pickle

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from catalog.config import data_dir
from catalog.schema import INVENTORY_COLUMNS, InputError, LandslideError
from tasks.change import CHANGE
from tasks.extraction import extract_area, extract_objects
from tasks.inventory import (
    CHANGE_SCORE,
    VETOES,
    Provenance,
    area_layer,
    build_inventory,
    check_columns,
    scale_volume,
)
from tasks.objects import HISTOGRAM_STEP, BlockObjects, Objects, join_area, join_objects
from tasks.polygons import burn, fingerprint, to_ground, to_pixels
from tasks.terrain import TERRAIN

ORIGIN = (-1_577_742, 194_404)
"""Somewhere in Hokkaido, 3 m pixels."""

CUTS = st.lists(st.integers(1, 11), max_size=4, unique=True).map(sorted)


def cut(mask, *, rows=(), cols=(), values=None, observed=None) -> list[BlockObjects]:
    observed = np.ones_like(mask) if observed is None else observed
    pieces = []
    for y0, y1 in zip((0, *rows), (*rows, mask.shape[0]), strict=True):
        for x0, x1 in zip((0, *cols), (*cols, mask.shape[1]), strict=True):
            part = np.s_[y0:y1, x0:x1]
            pieces.append(
                extract_objects(
                    mask[part],
                    origin=(ORIGIN[0] + y0, ORIGIN[1] + x0),
                    values={name: array[part] for name, array in (values or {}).items()},
                    observed=observed[part],
                )
            )
    return pieces


def whole(mask, **kwargs) -> Objects:
    return join_objects(cut(np.asarray(mask, bool), **kwargs))


def coordinates(found: Objects) -> list[str]:
    return [polygon.wkt for polygon in found.polygons]


@given(mask=hnp.arrays(bool, (12, 12)), rows=CUTS, cols=CUTS)
@settings(max_examples=150, deadline=None)
def test_join_objects_outlines_do_not_depend_on_the_blocks(mask, rows, cols):
    assert coordinates(whole(mask, rows=rows, cols=cols)) == coordinates(whole(mask))


@given(
    mask=hnp.arrays(bool, (12, 12)), unseen=hnp.arrays(bool, (12, 12)), rows=CUTS, cols=CUTS, seed=st.integers(0, 99)
)
@settings(max_examples=80, deadline=None)
def test_join_objects_tally_does_not_depend_on_the_blocks_or_their_order(mask, unseen, rows, cols, seed):
    rng = np.random.default_rng(seed)
    slope = np.where(rng.random(mask.shape) < 0.2, np.nan, rng.random(mask.shape) * 90).astype(np.float32)
    inputs = {"values": {"slope_deg": slope, "aspect_deg": 4 * slope}, "observed": mask | ~unseen}
    one, many = whole(mask, **inputs).tally, cut(mask, rows=rows, cols=cols, **inputs)
    rng.shuffle(many)
    other = join_objects(many).tally
    for name in ("pixels", "first", "outline", "unseen", "histogram"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name, column in one.variables.items():
        np.testing.assert_array_equal(column, other.variables[name], err_msg=name)


@given(mask=hnp.arrays(bool, (12, 12)), rows=CUTS, cols=CUTS)
@settings(max_examples=80, deadline=None)
def test_join_objects_polygons_are_valid_with_area_and_outline_of_their_pixels(mask, rows, cols):
    found = whole(mask, rows=rows, cols=cols)
    assert shapely.is_valid(found.polygons).all()
    np.testing.assert_array_equal(shapely.area(found.polygons), found.tally.pixels)
    np.testing.assert_array_equal(shapely.length(found.polygons), found.tally.outline)


@given(mask=hnp.arrays(bool, (12, 12)), rows=CUTS, cols=CUTS)
@settings(max_examples=80, deadline=None)
def test_burn_gives_back_the_mask(mask, rows, cols):
    found = whole(mask, rows=rows, cols=cols)
    np.testing.assert_array_equal(burn(found.polygons, origin=ORIGIN, shape=mask.shape), mask)


@given(mask=hnp.arrays(bool, (12, 12)), rows=CUTS, cols=CUTS)
@settings(max_examples=40, deadline=None)
def test_join_area_is_the_same_for_any_blocks_and_burns_back(mask, rows, cols):
    def area(rows, cols):
        edges = [(0, *c, 12) for c in (rows, cols)]
        corners = [
            (y, x) for y in zip(edges[0], edges[0][1:], strict=False) for x in zip(edges[1], edges[1][1:], strict=False)
        ]
        return join_area(
            [extract_area(mask[slice(*y), slice(*x)], origin=(ORIGIN[0] + y[0], ORIGIN[1] + x[0])) for y, x in corners]
        )

    assert area(rows, cols).wkt == area((), ()).wkt
    np.testing.assert_array_equal(burn([area(rows, cols)], origin=ORIGIN, shape=mask.shape), mask)


@pytest.mark.timeout(20)
def test_join_objects_takes_seconds_for_twenty_thousand_objects():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).random((4096, 4096)), 4) > 0.52
    found = whole(mask, rows=range(512, 4096, 512), cols=range(512, 4096, 512))
    assert found.polygons.size > 20_000


@pytest.mark.real
def test_join_objects_of_the_real_scars_are_the_same_for_any_blocks():
    with rasterio.open(data_dir() / "hokkaido2018/scene_west/inventory_class.tif") as source:
        mask = source.read(1) > 0
    found = whole(mask, rows=range(256, 1280, 256), cols=range(300, 1280, 300))
    assert coordinates(found) == coordinates(whole(mask))
    np.testing.assert_array_equal(burn(found.polygons, origin=ORIGIN, shape=mask.shape), mask)


def test_burn_returns_the_part_inside_a_window():
    mask = np.random.default_rng(1).random((20, 20)) < 0.5
    found = whole(mask)
    window = burn(found.polygons, origin=(ORIGIN[0] + 5, ORIGIN[1] + 7), shape=(6, 4))
    np.testing.assert_array_equal(window, mask[5:11, 7:11])


def test_fingerprint_sees_the_last_corner_of_a_long_outline():
    corners = [(i, i * i) for i in range(60)]
    one, other = (shapely.Polygon([*corners, (0, height)]) for height in (5000, 5001))
    assert repr(one) == repr(other)  # shapely shortens it
    assert fingerprint((one,)) != fingerprint((other,))
    assert fingerprint((one, other)) != fingerprint((other, one))
    assert fingerprint(()) == fingerprint(np.empty(0, object))


def test_burn_of_nothing_is_empty():
    assert not burn([], origin=(0, 0), shape=(3, 4)).any()


def test_join_objects_keeps_pixels_apart_that_meet_at_a_block_corner():
    found = whole([[1, 0], [0, 1]], rows=(1,), cols=(1,))
    assert found.tally.pixels.tolist() == [1, 1]


def test_join_objects_follows_a_spiral_over_many_blocks():
    spiral = np.zeros((41, 41), bool)
    y, x, (dy, dx), lap = 0, 0, (0, 1), 40
    spiral[0, 0] = True
    while lap > 1:
        for _ in range(2):
            for _ in range(lap):
                y, x = y + dy, x + dx
                spiral[y, x] = True
            dy, dx = dx, -dy
        lap -= 2
    found = whole(spiral, rows=range(3, 41, 3), cols=range(4, 41, 4))
    assert found.tally.pixels.tolist() == [spiral.sum()]
    assert coordinates(found) == coordinates(whole(spiral))


def test_join_objects_keeps_a_hole_that_spans_blocks():
    ring = np.ones((9, 9), bool)
    ring[2:7, 2:7] = False
    (polygon,) = whole(ring, rows=(4,), cols=(5,)).polygons
    assert [shapely.Polygon(hole).area for hole in polygon.interiors] == [25.0]


def test_join_objects_keeps_a_hole_inside_a_block_and_the_island_in_it():
    mask = np.ones((9, 12), bool)
    mask[2:7, 1:6] = False
    mask[4, 3] = True
    mask[3:5, 5:8] = False
    found = whole(mask, cols=[6])
    assert coordinates(found) == coordinates(whole(mask))
    assert [len(polygon.interiors) for polygon in found.polygons] == [1, 0]


def test_canonical_does_not_depend_on_how_many_vertices_are_taken_at_once(monkeypatch):
    mask = np.random.default_rng(3).random((40, 40)) < 0.6
    expected = coordinates(whole(mask))
    monkeypatch.setattr("tasks.polygons.VERTICES_AT_ONCE", 7)
    assert coordinates(whole(mask)) == expected


def test_join_objects_of_no_landslide_is_empty():
    assert whole(np.zeros((4, 4)), rows=(2,)).polygons.size == 0


def test_join_objects_counts_ground_outside_the_blocks_as_unseen():
    assert whole(np.ones((2, 3))).tally.unseen.tolist() == [10]


def test_join_objects_refuses_blocks_with_different_variables():
    mask = np.ones((2, 2), bool)
    blocks = cut(mask, values={"slope_deg": np.ones((2, 2), np.float32)}) + cut(mask)
    with pytest.raises(InputError, match="slope_deg"):
        join_objects(blocks)


def test_extract_objects_survives_pickling():
    mask = np.eye(5, dtype=bool)
    copies = pickle.loads(pickle.dumps(cut(mask, rows=(2,))))
    assert coordinates(join_objects(copies)) == coordinates(whole(mask))


def test_extract_objects_refuses_a_slope_that_is_not_in_degrees():
    with pytest.raises(InputError, match="0 to 90 degrees"):
        whole(np.ones((1, 1)), values={"slope_deg": np.full((1, 1), 120, np.float32)})


def test_extract_objects_refuses_arrays_of_another_shape():
    with pytest.raises(InputError, match=r"slope_deg: got shape \(1, 2\)"):
        extract_objects(
            np.ones((2, 2), bool), origin=(0, 0), values={"slope_deg": np.ones((1, 2), np.float32)},
            observed=np.ones((2, 2), bool),
        )  # fmt: skip


def test_statistic_is_the_mean_of_the_valid_pixels():
    values = {"probability": np.array([[0.5, 0.7, np.nan]], np.float32)}
    assert whole(np.ones((1, 3)), values=values).statistic("probability", "mean") == pytest.approx([0.6])


@pytest.mark.parametrize("name", ["flow_accumulation_m2", "profile_curvature"])
def test_statistic_of_huge_and_tiny_values_does_not_depend_on_the_blocks(name):
    large = {"flow_accumulation_m2": 9e13, "profile_curvature": 900.0}[name]
    values = np.full((40, 40), large, np.float32)
    values[1::2, ::3] = large * 1e-9
    one, two = (whole(np.ones((40, 40)), values={name: values}, rows=rows) for rows in ((), (3, 17)))
    assert one.tally.variables[name].tolist() == two.tally.variables[name].tolist()
    assert one.statistic(name, "mean") == pytest.approx([values.astype(np.float64).mean()], rel=1e-6)


def test_statistic_is_null_where_every_pixel_is_nodata():
    values = {"elevation_m": np.full((1, 3), np.nan, np.float32)}
    assert np.isnan(whole(np.ones((1, 3)), values=values).statistic("elevation_m", "max")).all()


def test_slope_percentile_agrees_with_numpy_within_a_bin():
    slope = np.random.default_rng(0).gamma(9, 3, (40, 40)).astype(np.float32)
    found = whole(np.ones((40, 40)), rows=(13,), values={"slope_deg": slope})
    assert found.slope_percentile(90) == pytest.approx(np.percentile(slope, 90), abs=HISTOGRAM_STEP)


def inventory(found: Objects, *, gsd_m=3.0, min_area_m2=0.0, previous=None, version=1, **provenance):
    given_ = {
        "threshold": 0.5,
        "model": "mffenet",
        "weights_sha256": "ab",
        "post_scenes": "p",
        "post_date": "2018-09-11",
    }
    stamp = Provenance(event_id="iburi", version=version, min_area_m2=min_area_m2, **(given_ | provenance))
    return build_inventory(found, gsd_m=gsd_m, epsg=32654, provenance=stamp, previous=previous)


def square(side=10, pad=2):
    return np.pad(np.ones((side, side), bool), pad)


def constant(mask, **values):
    return {name: np.full(mask.shape, value, np.float32) for name, value in values.items()}


def test_build_inventory_area_is_geodesic_within_the_scale_of_utm():
    landslides, _ = inventory(whole(square()))
    assert landslides["area_m2"].item() == pytest.approx(900, rel=2e-3)
    assert landslides["area_m2"].item() != 900


def test_build_inventory_measures_a_rectangle():
    landslides, _ = inventory(whole(np.pad(np.ones((4, 12)), 1)))
    assert landslides[["perimeter_m", "length_m", "width_m"]].iloc[0].tolist() == [96, 36, 12]


def test_build_inventory_leaves_out_the_small_and_keeps_the_exact_minimum():
    mask = np.zeros((8, 12), bool)
    mask[1:4, 1:4] = mask[5:7, 5:7] = True
    landslides, vetoed = inventory(whole(mask), min_area_m2=9 * 9.0)
    assert (len(landslides), len(vetoed)) == (1, 0)


def test_build_inventory_without_dem_or_pre_image_has_nulls_and_no_veto():
    landslides, vetoed = inventory(whole(square()))
    missing = ["slope_mean_deg", "slope_p90_deg", "aspect_deg", "relief_m", "h_over_l", f"{CHANGE_SCORE}_mean",
               "distance_to_epicentre_km", "pre_date"]  # fmt: skip
    assert landslides[missing].isna().all(axis=None)
    assert vetoed.empty


@pytest.mark.parametrize(
    ("values", "reasons"),
    [
        ({"slope_deg": 2.0}, "flat"),
        ({CHANGE_SCORE: 0.5}, "no_change"),
        ({"slope_deg": 2.0, CHANGE_SCORE: 0.5}, "flat;no_change"),
        ({"slope_deg": 12.0, CHANGE_SCORE: 4.0}, ""),
    ],
)
def test_build_inventory_vetoes_objects_with_their_reasons(values, reasons):
    mask = square()
    both = inventory(whole(mask, values=constant(mask, **values)))
    row = both[1 if reasons else 0].iloc[0]
    assert (row["reasons"], row["decision"]) == (reasons, "vetoed" if reasons else "accepted")


HIT_AND_MISS = {
    "flat": ("slope_deg", 2.0, 12.0),
    "bluish": ("redness", -0.05, 0.2),
    "dark": ("relative_brightness", 0.7, 1.6),
    "no_change": (CHANGE_SCORE, 0.5, 4.0),
}
"""A value of a pixel's variable that a veto rejects, and one that it lets pass."""


@pytest.mark.parametrize("veto", VETOES, ids=lambda veto: veto.code)
@pytest.mark.parametrize("hit", [True, False], ids=["hit", "miss"])
def test_vetoes_reject_what_they_say_and_nothing_else(veto, hit):
    variable, rejected, passed = HIT_AND_MISS[veto.code]
    mask = square()
    landslides, vetoed = inventory(whole(mask, values=constant(mask, **{variable: rejected if hit else passed})))
    assert (len(landslides), len(vetoed)) == ((0, 1) if hit else (1, 0))
    assert (vetoed if hit else landslides)["reasons"].item() == (veto.code if hit else "")


@pytest.mark.parametrize("veto", VETOES, ids=lambda veto: veto.code)
def test_vetoes_reject_nothing_where_their_input_is_missing(veto):
    landslides, _ = inventory(whole(square()))
    assert not veto.rejects(landslides).any()


def test_build_inventory_averages_aspect_around_north():
    mask = square(side=2, pad=0)
    aspect = np.array([[350, 10], [350, 10]], np.float32)
    landslides, _ = inventory(whole(mask, values={"aspect_deg": aspect}))
    assert np.cos(np.radians(landslides["aspect_deg"].item())) == pytest.approx(1, abs=1e-6)


def test_build_inventory_relief_over_length():
    mask = np.ones((10, 1), bool)
    rise = np.linspace(100, 145, 10, dtype=np.float32)[:, None]
    landslides, _ = inventory(whole(mask, values={"elevation_m": rise}))
    assert landslides[["relief_m", "h_over_l"]].iloc[0].tolist() == pytest.approx([45, 1.5])


def test_build_inventory_tells_relief_of_the_landslide_from_that_around_it():
    mask = square()
    landslides, _ = inventory(whole(mask, values=constant(mask, elevation_m=100.0, relief_m=37.0)))
    assert landslides[["relief_m", "local_relief_m_mean"]].iloc[0].tolist() == [0, 37]


@pytest.mark.parametrize(("drained_m2", "connected"), [(0.9e6, False), (1.1e6, True), (np.nan, None)])
def test_build_inventory_says_which_landslides_reach_a_channel(drained_m2, connected):
    mask = square()
    values = constant(mask, flow_accumulation_m2=5e3)
    values["flow_accumulation_m2"][5, 5] = drained_m2
    if connected is None:
        values = {}
    landslides, _ = inventory(whole(mask, values=values))
    (got,) = landslides["channel_connected"]
    assert (None if got is pd.NA else got) == connected


@pytest.mark.parametrize("variable", [f.variable.name for f in TERRAIN.values()] + sorted(
    name for f in CHANGE.values() for name in (f.variable.name, *([f.score.name] if f.score else []))
))  # fmt: skip
def test_every_feature_has_its_column_in_the_contract(variable):
    mask = square()
    landslides, _ = inventory(whole(mask, values=constant(mask, **{variable: 1.0})))
    assert set(landslides.columns) - {"geometry"} <= set(INVENTORY_COLUMNS)


def test_build_inventory_refuses_a_column_without_meaning():
    mask = square()
    with pytest.raises(LandslideError, match="mystery_mean is not in catalog.schema.INVENTORY_COLUMNS"):
        inventory(whole(mask, values=constant(mask, mystery=1.0)))


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        (lambda t: t.assign(area_m2=["large"]), "area_m2 is .*, expected number"),
        (lambda t: t.assign(confidence=[None]), "confidence has nulls"),
        (lambda t: t.drop(columns="reasons"), "reasons is missing"),
    ],
)
def test_check_columns_names_what_is_wrong(broken, match):
    landslides, _ = inventory(whole(square()))
    with pytest.raises(LandslideError, match=match):
        check_columns(broken(landslides.drop(columns="geometry")))


def test_build_inventory_marks_objects_beside_unseen_ground():
    mask = square()
    observed = np.ones_like(mask)
    observed[:, 12:] = False
    landslides, _ = inventory(whole(mask, observed=observed, cols=(12,)))
    assert landslides[["observed_fraction", "touches_edge"]].iloc[0].tolist() == [0.75, True]


@pytest.mark.parametrize(("probability", "confidence"), [(0.8, "high"), (0.65, "medium"), (0.55, "low")])
def test_build_inventory_confidence_follows_its_rule(probability, confidence):
    mask = square()
    landslides, _ = inventory(whole(mask, values=constant(mask, probability=probability)))
    assert landslides["confidence"].item() == confidence


def test_build_inventory_confidence_is_not_high_at_the_edge_of_what_was_seen():
    mask = square(pad=0)
    landslides, _ = inventory(whole(mask, values=constant(mask, probability=0.99)))
    assert landslides["confidence"].item() == "medium"


def test_build_inventory_measures_the_distance_to_the_epicentre():
    found = whole(square())
    here = inventory(found)[0].to_crs(4326).geometry.iloc[0].centroid
    landslides, _ = inventory(found, event_longitude=here.x, event_latitude=here.y - 0.1)
    assert landslides["distance_to_epicentre_km"].item() == pytest.approx(11.107, abs=0.01)


def test_build_inventory_of_nothing_has_the_same_columns_and_crs():
    nothing, _ = inventory(whole(np.zeros((5, 5))))
    something, _ = inventory(whole(square()))
    assert set(something.columns) == set(nothing.columns)
    assert nothing.crs == something.crs


def test_build_inventory_lies_where_the_pixels_are():
    (polygon,) = inventory(whole(np.ones((2, 3))))[0].geometry
    left, top = ORIGIN[1] * 3.0, -ORIGIN[0] * 3.0
    assert polygon.bounds == (left, top - 6, left + 9, top)


def test_to_pixels_undoes_to_ground_on_a_pixel_size_that_is_no_binary_fraction():
    found = whole(np.random.default_rng(3).random((30, 30)) < 0.5)
    ground = to_ground(found.polygons, gsd_m=0.3)
    assert shapely.equals_exact(to_pixels(ground, gsd_m=0.3), found.polygons, tolerance=0).all()


def test_ids_are_unique_and_repeatable():
    found = whole(np.random.default_rng(2).random((40, 40)) < 0.4)
    first, again = inventory(found)[0]["id"], inventory(found)[0]["id"]
    assert first.is_unique
    assert first.tolist() == again.tolist()


def test_ids_survive_a_moved_outline():
    before, _ = inventory(whole(square()))
    moved = square()
    moved[1, 2:12], moved[11] = True, False
    after, _ = inventory(whole(moved), previous=before, version=2)
    assert after[["id", "supersedes"]].iloc[0].tolist() == [before["id"].item(), ""]


@pytest.mark.parametrize("gsd_m", [3.0, 0.3, 1 / 3])
def test_ids_of_the_same_landslides_again_are_the_same_and_supersede_none(gsd_m):
    found = whole(np.random.default_rng(2).random((40, 40)) < 0.55)
    before, _ = inventory(found, gsd_m=gsd_m)
    after, _ = inventory(found, gsd_m=gsd_m, previous=before, version=2)
    assert after["id"].tolist() == before["id"].tolist()
    assert not after["supersedes"].any()


def test_ids_of_a_split_landslide_are_new_or_carried_but_never_shared():
    before, _ = inventory(whole(square()))
    split = square()
    split[4] = False  # the smaller, upper part holds the first pixel, the larger one keeps the id
    after, _ = inventory(whole(split), previous=before, version=2)
    assert after["id"].is_unique
    assert after["id"].tolist()[1] == before["id"].item()
    assert after["supersedes"].tolist() == [before["id"].item(), ""]


def test_supersedes_names_the_landslides_that_were_merged():
    apart = square()
    apart[:, 7] = False
    before, _ = inventory(whole(apart))
    after, _ = inventory(whole(np.pad(np.ones((10, 30), bool), 2)), previous=before, version=2)
    assert after["supersedes"].item() == ";".join(sorted(before["id"]))


def test_scale_volume_interval_holds_the_value():
    area = np.array([1e2, 1e4, 1e6])
    assert (scale_volume(area, errors=-1) < scale_volume(area)).all()
    assert (scale_volume(area) < scale_volume(area, errors=1)).all()


def test_area_layer_is_one_row_in_the_grids_crs():
    layer = area_layer(join_area([extract_area(np.ones((4, 5), bool), origin=ORIGIN)]), gsd_m=3.0, epsg=32654)
    assert isinstance(layer, gpd.GeoDataFrame)
    assert (len(layer), layer.geometry.area.item(), layer.crs.to_epsg()) == (1, 180.0, 32654)
