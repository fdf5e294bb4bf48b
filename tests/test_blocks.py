"""What a worker is sent for a block."""

import pickle

import numpy as np
import pytest
import shapely

from catalog.grid import snap_grid
from catalog.schema import LANDSLIDE_CLASS, QUALITY
from catalog.store import StoreRef
from tasks.blocks import ClassJob, class_share
from tasks.polygons import burn

BLOCK_PX = 256


@pytest.fixture
def job():
    """Squares of 10 px over four by four blocks: one in the middle of each, and one on each corner where four meet."""
    grid = snap_grid((500_000, 4_000_000, 510_239, 4_010_239), epsg=32633, gsd_m=10.0, block_px=BLOCK_PX)
    rows, cols = (start + np.arange(BLOCK_PX // 2, side, BLOCK_PX // 2)
                  for start, side in zip((grid.row0, grid.col0), grid.shape, strict=True))  # fmt: skip
    x, y = (centres.ravel() for centres in np.meshgrid(cols, rows))
    squares = shapely.box(x - 5, y - 5, x + 5, y + 5)
    return ClassJob(*(StoreRef(".", "event", "key", grid, (v,), BLOCK_PX) for v in (LANDSLIDE_CLASS, QUALITY)), squares)


def place(job, block):
    grid = job.target.grid
    window = grid.window(block)
    return {"origin": (grid.row0 + window.y0, grid.col0 + window.x0), "shape": window.shape}


def test_class_share_holds_the_landslides_near_the_block_only(job):
    most = max(class_share(job, block).landslides_px.size for block in job.target.grid.blocks)
    assert most == 9 < job.landslides_px.size  # the one in the middle, four across its sides, four on its corners


def test_class_share_burns_what_the_whole_job_burns(job):
    for block in job.target.grid.blocks:
        near, here = class_share(job, block), place(job, block)
        np.testing.assert_array_equal(burn(near.landslides_px, **here), burn(job.landslides_px, **here))


def test_class_share_is_sent_in_a_fraction_of_the_whole_job(job):
    sizes = [len(pickle.dumps(class_share(job, block))) for block in job.target.grid.blocks]
    assert max(sizes) < len(pickle.dumps(job)) / 2


def test_class_share_of_no_landslide_is_empty(job):
    none = ClassJob(job.target, job.post, job.landslides_px[:0])
    assert class_share(none, job.target.grid.blocks[0]).landslides_px.size == 0
