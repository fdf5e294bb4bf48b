"""An input is all that is read of it: whatever changes its values on the ground changes its identity."""

import json
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, datetime

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from processes import free_port, listens, wait_until
from rasterio.enums import Resampling
from stac_server import files_of

from catalog.checks import check_inputs
from catalog.config import RunConfig
from catalog.identity import content_digest, parts_of
from catalog.items import LOCAL, local_item
from catalog.scenes import Epoch, describe_dem, read_elevation, read_epoch
from catalog.schema import InputError
from catalog.sensors import sensor

# of files whose place on earth is in a file beside them
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

LEFT, TOP = 583_200.0, 4_737_000.0
BOX = GeoBox((64, 64), Affine(10, 0, LEFT, 0, -10, TOP), "EPSG:32654")


def raster(path, data, *, place=BOX.transform, crs="EPSG:32654", **profile):
    data = np.atleast_3d(data) if data.ndim == 3 else data[None]
    shape = {"count": len(data), "height": data.shape[1], "width": data.shape[2], "dtype": data.dtype}
    with rasterio.open(path, "w", driver="GTiff", **shape, transform=place, crs=crs, **profile) as out:
        out.write(data)
    return path


def outside():
    """Masks and overviews are written beside a file, not into it."""
    return rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True)


def picture(seed=0):
    return np.random.default_rng(seed).integers(20, 200, (3, 64, 64)).astype(np.uint8)


def epoch_of(path, name="rgb8", masks=()):
    return Epoch("post", name, (local_item(path, sensor(name)).to_dict(transform_hrefs=False),), tuple(masks))


def world_file(path, shift=0.0):
    path.write_text(f"10\n0\n0\n-10\n{LEFT + 5 + shift}\n{TOP - 5}\n")


def vrt(path, *sources, relative=True):
    """A VRT of three bands; two sources: the second one over the first."""
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{n}">'
        + "".join(
            f'<SimpleSource><SourceFilename relativeToVRT="{int(relative)}">{source}</SourceFilename>'
            f"<SourceBand>{n}</SourceBand></SimpleSource>"
            for source in sources
        )
        + "</VRTRasterBand>"
        for n in (1, 2, 3)
    )
    path.write_text(
        f'<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32654</SRS><GeoTransform>{LEFT}, 10, 0, {TOP}, 0, -10'
        f"</GeoTransform>{bands}</VRTDataset>"
    )
    return path


def beside(folder, suffix):
    return folder / f"post{suffix}"


def shifted_world_file(folder):
    raster(folder / "post.tif", picture(), place=None, tfw="NO")
    world_file(folder / "post.tfw")
    yield folder / "post.tif"
    world_file(folder / "post.tfw", shift=150)


def other_crs_beside(folder):
    path = raster(folder / "post.tif", picture(), crs=None)
    (folder / "post.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:32654</SRS></PAMDataset>")
    yield path
    (folder / "post.tif.aux.xml").write_text("<PAMDataset><SRS>EPSG:32653</SRS></PAMDataset>")


def other_mask_beside(folder):
    path = raster(folder / "post.tif", picture())
    with outside(), rasterio.open(path, "r+") as out:
        out.write_mask(np.full((64, 64), True))
    assert (folder / "post.tif.msk").is_file()
    yield path
    with outside(), rasterio.open(path, "r+") as out:
        out.write_mask(np.arange(64 * 64).reshape(64, 64) % 3 > 0)


def other_nodata_beside(folder):
    path = raster(folder / "post.tif", picture())
    yield path
    bands = "".join(f'<PAMRasterBand band="{n}"><NoDataValue>55</NoDataValue></PAMRasterBand>' for n in (1, 2, 3))
    (folder / "post.tif.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")


def other_source_of_a_nested_vrt(folder):
    raster(folder / "a.tif", picture())
    vrt(folder / "inner.vrt", "a.tif")
    yield vrt(folder / "post.vrt", "inner.vrt")
    raster(folder / "a.tif", picture(1))


def other_mask_of_a_source(folder):
    path = raster(folder / "a.tif", picture())
    with outside(), rasterio.open(path, "r+") as out:
        out.write_mask(np.full((64, 64), True))
    yield vrt(folder / "post.vrt", "a.tif")
    with outside(), rasterio.open(path, "r+") as out:
        out.write_mask(np.arange(64 * 64).reshape(64, 64) % 3 > 0)


def other_source_in_a_nested_text(folder):
    raster(folder / "a.tif", picture())
    inner = vrt(folder / "inner.vrt", folder / "a.tif", relative=False).read_text()
    (folder / "inner.vrt").unlink()
    yield vrt(folder / "post.vrt", inner.replace("<", "&lt;").replace(">", "&gt;"), relative=False)
    raster(folder / "a.tif", picture(1))


def other_source_by_protocol(folder):
    raster(folder / "a.tif", picture())
    yield vrt(folder / "post.vrt", f"vrt://{folder / 'a.tif'}?bands=1,2,3", relative=False)
    raster(folder / "a.tif", picture(1))


def other_content_of_an_archive(folder):
    def pack(seed):
        raster(folder / "post.tif", picture(seed))
        with zipfile.ZipFile(folder / "scene.zip", "w") as archive:
            archive.write(folder / "post.tif", "post.tif")
            archive.writestr("other.txt", "")

    pack(0)
    yield f"/vsizip/{folder}/scene.zip/post.tif"
    pack(1)


CHANGES = {
    change.__name__.replace("_", " "): change
    for change in (
        shifted_world_file, other_crs_beside, other_mask_beside, other_nodata_beside, other_source_of_a_nested_vrt,
        other_mask_of_a_source, other_source_in_a_nested_text, other_source_by_protocol, other_content_of_an_archive,
    )
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_epoch_fingerprint_follows_all_that_is_read(tmp_path, change):
    steps = change(tmp_path)
    path = str(next(steps))
    before, again = epoch_of(path), epoch_of(path)
    assert before.fingerprint() == again.fingerprint()
    assert next(steps, None) is None
    assert epoch_of(path).fingerprint() != before.fingerprint()
    assert epoch_of(path).origins() != before.origins()


def test_epoch_fingerprint_follows_overviews_beside(tmp_path):
    path = raster(tmp_path / "post.tif", picture())
    alone = content_digest(str(path))
    with outside(), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], Resampling.nearest)
    assert [name.removeprefix(str(tmp_path)) for name in parts_of(str(path))] == ["/post.tif", "/post.tif.ovr"]
    assert content_digest(str(path)) != alone


def test_content_of_a_file_alone_is_that_of_its_bytes(tmp_path):
    import hashlib

    path = raster(tmp_path / "post.tif", picture())
    assert content_digest(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_content_does_not_depend_on_the_place(tmp_path):
    (tmp_path / "a").mkdir()
    raster(tmp_path / "a" / "a.tif", picture())
    vrt(tmp_path / "a" / "inner.vrt", "a.tif")
    vrt(tmp_path / "a" / "post.vrt", "inner.vrt")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert len(parts_of(str(tmp_path / "a" / "post.vrt"))) == 3
    assert content_digest(str(tmp_path / "a" / "post.vrt")) == content_digest(str(tmp_path / "b" / "post.vrt"))


def test_vrt_of_what_is_no_file_is_refused(tmp_path):
    vrt(tmp_path / "post.vrt", "WMS:http://127.0.0.1:9/?LAYERS=a", relative=False)
    with pytest.raises(InputError, match="no file whose content can be known"):
        content_digest(str(tmp_path / "post.vrt"))


def test_source_of_a_vrt_on_a_server_counts(tmp_path):
    (tmp_path / "www").mkdir()
    raster(tmp_path / "www" / "a.tif", picture())
    port = free_port()  # of another process: GDAL holds this one's interpreter lock while it waits for an answer
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", tmp_path / "www"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        wait_until(lambda: listens(port), every_s=0.05, what="server")
        path = vrt(tmp_path / "post.vrt", f"/vsicurl/http://127.0.0.1:{port}/a.tif", relative=False)
        before = content_digest(str(path))
        raster(tmp_path / "www" / "a.tif", picture(1), compress="deflate")
        assert content_digest(str(path)) != before
        server.terminate()


def test_dem_and_mask_follow_all_that_is_read(tmp_path):
    raster(tmp_path / "post.tif", picture())
    dem = raster(tmp_path / "dem.tif", np.full((64, 64), 300, np.int16), place=None, tfw="NO")
    mask = raster(tmp_path / "mask.tif", np.zeros((64, 64), np.uint8), place=None, tfw="NO")
    for name in ("dem", "mask"):
        world_file(tmp_path / f"{name}.tfw")
    source, epoch = describe_dem(dem), epoch_of(tmp_path / "post.tif", masks=[str(mask)])
    seen, masks = read_elevation(source, BOX).compute(), epoch.mask_digests()
    for name in ("dem", "mask"):
        world_file(tmp_path / f"{name}.tfw", shift=150)
    assert describe_dem(dem).identity != source.identity
    assert epoch_of(tmp_path / "post.tif", masks=[str(mask)]).mask_digests() != masks
    assert np.isfinite(seen).sum() > np.isfinite(read_elevation(describe_dem(dem), BOX)).sum()


# --- items -----------------------------------------------------------------------------------------------------------


def item_of(path, href, **properties):
    item = local_item(path, sensor("sentinel2-l2a"), time_utc=datetime(2024, 1, 2, tzinfo=UTC))
    item = item.to_dict(transform_hrefs=False)
    for asset in item["assets"].values():
        asset["href"] = href
    del item["properties"][LOCAL]
    return {**item, "id": "a", "properties": {**item["properties"], "updated": "2024-01-03T00:00:00Z", **properties}}


@pytest.fixture
def sentinel(tmp_path):
    data = np.random.default_rng(1).integers(1700, 4000, (7, 64, 64)).astype(np.uint16)
    data[6] = 4
    (tmp_path / "www").mkdir()
    return raster(tmp_path / "www" / "s.tif", data)


def checked(tmp_path, item):
    (tmp_path / "www" / "items.json").write_text(json.dumps(item))
    places = {"root": str(tmp_path / "s"), "out": str(tmp_path / "o"), "block_px": 256}
    return check_inputs(
        RunConfig(name="e", post=(str(tmp_path / "www" / "items.json"),), sensor="sentinel2-l2a", **places)
    ).post


def test_item_whose_offset_changes_is_another(tmp_path, sentinel):
    with files_of(tmp_path / "www") as host:
        href = f"http://{host}/s.tif"
        plain = checked(tmp_path, item_of(sentinel, href))
        baseline = checked(tmp_path, item_of(sentinel, href, **{"s2:processing_baseline": "05.00"}))
        stated = item_of(sentinel, href)
        for asset in stated["assets"].values():
            asset["raster:bands"] = [{"offset": -0.1, "scale": 0.0001}]
        offset = checked(tmp_path, stated)
        values = [float(read_epoch(epoch, BOX)[0]["red"].mean()) for epoch in (plain, baseline, offset)]
        for other in (baseline, offset):
            assert other.fingerprint() != plain.fingerprint()
            assert other.origins() != plain.origins()
    assert values[1] == pytest.approx(values[0] - 0.1, abs=1e-5)
    assert values[2] == pytest.approx(values[1], abs=1e-5)


def test_item_whose_file_changes_is_another(tmp_path, sentinel):
    with files_of(tmp_path / "www") as host:
        item = item_of(sentinel, f"http://{host}/s.tif")
        before = checked(tmp_path, item).fingerprint()
        assert checked(tmp_path, item).fingerprint() == before
        with rasterio.open(sentinel) as dataset:
            data = dataset.read()
        raster(sentinel, data, place=BOX.transform * Affine.translation(3, 0))
        assert checked(tmp_path, item).fingerprint() != before


def test_item_in_a_file_counts_by_content(tmp_path, sentinel):
    item = item_of(sentinel, "s.tif")
    before = checked(tmp_path, item).fingerprint()
    data = np.full((7, 64, 64), 2000, np.uint16)
    raster(sentinel, data)
    assert checked(tmp_path, item).fingerprint() != before


@pytest.mark.parametrize("query", ["?X-Amz-Signature=abc&X-Amz-Expires=60", "?sig=abc&se=2024", "?token=abc"])
def test_signature_of_an_address_is_no_part_of_what_it_is(tmp_path, sentinel, query):
    with files_of(tmp_path / "www") as host:
        plain, signed = (checked(tmp_path, item_of(sentinel, f"http://{host}/s.tif{q}")) for q in ("", query))
        assert plain.fingerprint() == signed.fingerprint()
        paths = (f"http://{host}/s.tif{q}" for q in ("", query))
        ours, theirs = (epoch_of(path, "sentinel2-l2a") for path in paths)
        assert ours.fingerprint() == theirs.fingerprint()
