"""Imagery that lies elsewhere: on an S3 server and on a web server, both on loopback."""

import hashlib

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from processes import s3_server

from catalog import files
from catalog.checks import check_places
from catalog.config import RunConfig
from catalog.items import local_item
from catalog.scenes import Epoch, describe_dem, read_elevation, read_epoch
from catalog.schema import InputError
from catalog.sensors import sensor

BOX = GeoBox((40, 50), Affine(3, 0, 583_200, 0, -3, 4_737_000), "EPSG:32654")

# of the S3 client's own event loop, which is left to the interpreter's end
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server, monkeypatch):
    """The S3 bucket `scenes`, as a folder of its own for each test."""
    import s3fs

    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("LANDSLIDENET_S3_ENDPOINT", server)
    remote = s3fs.S3FileSystem(client_kwargs={"endpoint_url": server}, skip_instance_cache=True)
    remote.makedirs("scenes", exist_ok=True)
    return remote


def raster(path, data, **profile):
    profile |= {"driver": "GTiff", "count": len(data), "height": 40, "width": 50, "dtype": data.dtype}
    with rasterio.open(path, "w", **profile, crs="EPSG:32654", transform=BOX.transform) as out:
        out.write(data)
    return path


@pytest.fixture(params=["s3", "http"])
def place(request, bucket, server, tmp_path):
    """Puts local files where they have a URL."""

    def put(path):
        bucket.put_file(str(path), f"scenes/{request.param}/{path.name}", ACL="public-read")
        return f"{'s3:/' if request.param == 's3' else server}/scenes/{request.param}/{path.name}"

    return put


def epoch_of(path, name):
    return Epoch("post", name, (local_item(path, sensor(name)).to_dict(transform_hrefs=False),))


def test_imagery_of_a_url_is_that_of_the_file(place, tmp_path):
    data = np.random.default_rng(0).integers(20, 200, (3, 40, 50), dtype=np.uint8)
    path = raster(tmp_path / "post.tif", data)
    here, there = epoch_of(str(path), "rgb8"), epoch_of(place(path), "rgb8")
    assert there.ids == ("post",)
    assert there.items[0]["assets"]["red"]["href"] == place(path)
    assert there.fingerprint() == here.fingerprint()
    np.testing.assert_array_equal(read_epoch(there, BOX)[0]["red"], read_epoch(here, BOX)[0]["red"])


def test_quality_file_beside_a_url_is_found(place, tmp_path):
    place(raster(tmp_path / "s_3B_udm2.tif", np.ones((8, 40, 50), np.uint8)))
    imagery = place(raster(tmp_path / "s_3B_AnalyticMS_SR_harmonized.tif", np.full((4, 40, 50), 1500, np.uint16)))
    assert epoch_of(imagery, "planetscope-4b").qa_rules == ("udm2",)


def test_dem_of_a_url_is_that_of_the_file(place, tmp_path):
    path = raster(tmp_path / "dem.tif", np.full((1, 40, 50), 300, np.int16), nodata=-9999)
    source = describe_dem(place(path))
    assert source.fingerprint == describe_dem(path).fingerprint
    assert (read_elevation(source, BOX) == 300).all()


def test_sha256_of_a_url_is_that_of_its_bytes(place, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"landslide" * 1000)
    url = place(tmp_path / "a.bin")
    assert files.sha256_of(url) == hashlib.sha256(b"landslide" * 1000).hexdigest()
    assert files.exists(url)
    assert not files.exists(f"{url}.other")


def test_missing_url_is_bad_input(place, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"a")
    url = place(tmp_path / "a.bin")
    with pytest.raises(InputError, match="cannot be read as a raster"):
        local_item(f"{url}.tif", sensor("rgb8"))
    with pytest.raises(InputError, match="cannot be read"):
        files.sha256_of(f"{url}.tif")


def test_sha256_of_a_file_follows_its_change(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"one")
    first = files.sha256_of(str(path))
    path.write_bytes(b"another")
    assert files.sha256_of(str(path)) != first


def test_write_whole_replaces_what_was_there(tmp_path):
    for text in ("a much longer text before\n", "á\n"):
        assert files.write_whole(tmp_path / "new/event.json", text).read_text("utf-8") == text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["event.json"]


def test_write_whole_that_fails_leaves_what_was_there(tmp_path):
    files.write_whole(tmp_path / "event.json", "before")
    with pytest.raises(UnicodeEncodeError):
        files.write_whole(tmp_path / "event.json", "after \ud800")
    assert (tmp_path / "event.json").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["event.json"]


@pytest.mark.parametrize("path", ["/a/b/post.tif", "https://host/a/post.tif?signature=x/y", "s3://bucket/post.tif"])
def test_name_of_has_no_query(path):
    assert files.name_of(path) == "post.tif"


def with_root(root, out):
    return RunConfig(name="e", post=("post.tif",), root=root, out=str(out))


def test_check_places_of_a_bucket_leaves_nothing_behind(bucket, tmp_path):
    check_places(with_root("s3://scenes/store", tmp_path))
    bucket.invalidate_cache()
    assert not bucket.exists("scenes/store")


def test_check_places_refuses_a_bucket_that_is_not_there(bucket, tmp_path):
    with pytest.raises(InputError, match=r"^--root s3://nowhere/store: cannot be written \(.*bucket does not exist"):
        check_places(with_root("s3://nowhere/store", tmp_path))


def test_check_places_refuses_an_endpoint_that_does_not_answer(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("LANDSLIDENET_S3_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"Could not connect to the endpoint .*; check the address"):
        check_places(with_root("s3://scenes/store", tmp_path))


def test_check_places_refuses_an_address_it_does_not_know(tmp_path):
    with pytest.raises(InputError, match="Protocol not known: ftps3"):
        check_places(with_root("ftps3://scenes/store", tmp_path))
