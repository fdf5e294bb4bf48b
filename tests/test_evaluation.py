import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from catalog.config import data_dir
from catalog.schema import InputError
from tasks.evaluation import PixelCounts, area_error, clip, object_scores, pixel_scores, scores

CLASSES = hnp.arrays(np.uint8, (8, 8), elements=st.sampled_from([0, 1, 255]))
MASKS = hnp.arrays(bool, (8, 8))


def layer(*shapes, crs=32654) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(geometry=list(shapes), crs=crs)


def box(x, y, side) -> shapely.Polygon:
    return shapely.box(x, y, x + side, y + side)


@given(predicted=CLASSES, truth=MASKS, valid=MASKS, row=st.integers(0, 8))
def test_pixel_scores_of_blocks_add_up(predicted, truth, valid, row):
    parts = (pixel_scores(predicted[s], truth[s], valid[s]) for s in (np.s_[:row], np.s_[row:]))
    assert sum(parts, PixelCounts()) == pixel_scores(predicted, truth, valid)


@given(predicted=CLASSES, truth=MASKS, valid=MASKS)
def test_pixel_scores_count_each_valid_observed_pixel_once(predicted, truth, valid):
    counts = pixel_scores(predicted, truth, valid)
    assert counts.tp + counts.fp + counts.fn + counts.tn == (valid & (predicted != 255)).sum()


def test_pixel_scores_refuse_probabilities():
    with pytest.raises(InputError, match="threshold it first"):
        pixel_scores(np.full((1, 1), 7, np.uint8), np.ones((1, 1), bool), np.ones((1, 1), bool))


def test_pixel_scores_refuse_other_shapes():
    with pytest.raises(InputError, match="align them first"):
        pixel_scores(np.zeros((2, 2), np.uint8), np.ones((1, 1), bool), np.ones((1, 1), bool))


def test_scores_of_a_worked_example():
    got = scores(PixelCounts(tp=6, fp=2, fn=3, tn=9))
    expected = {"precision": 6 / 8, "recall": 6 / 9, "f1": 12 / 17, "iou": 6 / 11, "mcc": 48 / np.sqrt(8 * 9 * 11 * 12)}
    assert {name: got[name] for name in expected} == pytest.approx(expected)


def test_scores_are_none_where_undefined():
    got = scores(PixelCounts(tn=5))
    assert [got[name] for name in ("precision", "recall", "f1", "iou", "mcc")] == [None] * 5


@given(st.builds(PixelCounts, *[st.integers(0, 10**9)] * 4))
def test_scores_stay_in_their_ranges(counts):
    got = scores(counts)
    assert all(0 <= got[n] <= 1 for n in ("precision", "recall", "f1", "iou") if got[n] is not None)
    assert got["mcc"] is None or -1 - 1e-12 <= got["mcc"] <= 1 + 1e-12


def test_object_scores_find_by_size_class():
    truth = layer(box(0, 0, 20), box(100, 0, 50), box(300, 0, 50), box(1000, 0, 400))
    got = object_scores(layer(box(100, 0, 50), box(1000, 0, 300)), truth)
    assert {name: c["detection_rate"] for name, c in got["by_size_m2"].items()} == {
        "<1e3": 0.0, "1e3-1e4": 0.5, "1e4-1e5": None, ">=1e5": 1.0,
    }  # fmt: skip


def test_object_scores_add_up_the_pieces_that_cover_a_landslide():
    pieces = layer(box(0, 0, 2.4), box(5, 5, 2.4))
    assert object_scores(pieces, layer(box(0, 0, 10)))["found"] == 1
    assert object_scores(pieces.head(1), layer(box(0, 0, 10)))["found"] == 0


def test_object_scores_do_not_count_an_overlap_of_predictions_twice():
    twice = layer(box(0, 0, 2.4), box(0, 0, 2.4))
    assert object_scores(twice, layer(box(0, 0, 10)))["found"] == 0


def test_object_scores_neighbours_that_touch_are_false_alarms():
    got = object_scores(layer(box(10, 0, 10)), layer(box(0, 0, 10)))
    assert (got["found"], got["false_alarms"], got["false_alarm_share"]) == (0, 1, 1.0)


def test_clip_leaves_out_what_is_outside_or_only_touches_the_ground():
    ground = layer(box(0, 0, 50))
    got = clip(layer(box(10, 0, 10), box(200, 0, 10), box(50, 0, 10)), ground)
    assert object_scores(got, got)["truth"] == 1


@given(
    clouds=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(1, 30)), max_size=8),
    corners=st.lists(st.tuples(st.floats(0, 90), st.floats(0, 90)), min_size=1, max_size=5),
)
def test_clip_to_pieces_of_the_ground_is_to_clip_to_the_whole(clouds, corners):
    seen = shapely.box(0, 0, 100, 100).difference(shapely.union_all([box(*cloud) for cloud in clouds]))
    tiles = [box(x, y, 32).intersection(seen) for x in range(0, 100, 32) for y in range(0, 100, 32)]
    slides = layer(*(shapely.Point(*corner).buffer(40) for corner in corners))
    got, expected = (area_error(*[clip(slides, ground)] * 2) for ground in (layer(*tiles), layer(seen)))
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_clip_refuses_ground_in_another_crs():
    with pytest.raises(InputError, match="UTM"):
        clip(layer(box(0, 0, 1)), layer(box(0, 0, 1), crs=32655))


def test_object_scores_of_nothing_are_none():
    got = object_scores(layer(), layer())
    assert (got["detection_rate"], got["false_alarm_share"]) == (None, None)


def test_object_scores_repair_a_polygon_that_crosses_itself():
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    assert object_scores(layer(box(0, 0, 10)), layer(bow_tie))["detection_rate"] == 1.0


@pytest.mark.parametrize("crs", [4326, 32655, None])
def test_object_scores_refuse_another_crs(crs):
    with pytest.raises(InputError, match="UTM"):
        object_scores(layer(box(0, 0, 1)), layer(box(0, 0, 1), crs=crs))


def test_area_error_counts_a_scar_under_its_deposit_once():
    got = area_error(layer(box(0, 0, 10)), layer(box(0, 0, 10), box(0, 5, 10)))
    assert (got["predicted_m2"], got["truth_m2"], got["shared_m2"]) == (100, 150, 100)
    assert got["ratio"] == pytest.approx(2 / 3)


def test_area_error_has_no_ratio_without_truth():
    assert area_error(layer(box(0, 0, 10)), layer())["ratio"] is None


def test_area_error_is_within_the_ground_it_was_clipped_to():
    ground = layer(shapely.box(0, 0, 5, 5))
    got = area_error(clip(layer(box(0, 0, 10)), ground), clip(layer(box(0, 0, 10)), ground))
    assert (got["predicted_m2"], got["iou"]) == (25, 1.0)


@pytest.mark.real
def test_area_error_of_a_real_inventory_against_itself_is_none():
    path = data_dir() / "hokkaido2018/inventory_koukita.gpkg"
    mapped = gpd.read_file(path, layer="scar", rows=500).to_crs(32654)
    got = area_error(mapped, mapped)
    assert got["ratio"] == 1.0
    assert object_scores(mapped, mapped)["detection_rate"] == 1.0
