"""STAC APIs that lead elsewhere, on loopback: whoever searches, no request leaves the allowed hosts."""

from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from shapely.geometry import box, mapping
from stac_server import Search, listing, served

from catalog.config import StacConfig
from catalog.imagery import search_imagery
from catalog.items import search_stac
from catalog.policy import ImageryPolicy, StacSource
from catalog.schema import LandslideError
from catalog.sensors import sensor

START, END = datetime(2018, 9, 1, tzinfo=UTC), datetime(2018, 9, 20, tzinfo=UTC)
AREA = box(142.01, 42.73, 142.03, 42.76)
ITEM = {
    "type": "Feature", "stac_version": "1.0.0", "id": "a", "collection": "c", "links": [],
    "geometry": mapping(AREA), "bbox": list(AREA.bounds),
    "properties": {"datetime": "2018-09-11T01:30:00Z", "gsd": 10.0},
    "assets": {band: {"href": "s3://a/x.tif"} for band in ("red", "green", "blue")},
}  # fmt: skip
"""pystac-client asks for no page after one without items."""


def detection(url, hosts):
    return search_stac(
        StacConfig(url=url, collection="c"), sensor=sensor("rgb8"), bbox=AREA.bounds, start=START, end=END, hosts=hosts
    )


def policy(url, hosts):
    imagery = ImageryPolicy(sources=(StacSource(url=url, collection="c", sensor="rgb8"),), timeout_s=2.0)
    return search_imagery(imagery, area=AREA, start=START, end=END, hosts=hosts)


SEARCHES = [detection, policy]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr("catalog.web.PAUSE_S", 0.01)


@pytest.fixture
def inside():
    """An API that nobody allowed, and what it was asked."""
    asked = []

    class Inside(Search):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        do_POST = do_GET

    with served(Inside) as host:
        yield host, asked


def leading(path, target):
    """An API whose answer at a path is a redirect; the others are sound, and name that path as the next page."""

    class Leading(Search):
        features = [ITEM]

        def do_GET(self):
            if self.path.partition("?")[0] != path:
                super().do_GET()
                return
            self.send_response(302)
            self.send_header("Location", f"http://{target}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def links(self, root):
            return [{"rel": "next", "href": f"{root}{path}"}] if path == "/next" else []

    return served(Leading)


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.__name__)
@pytest.mark.parametrize("path", ["/", "/search", "/next"])
def test_a_search_is_not_sent_on_to_another_host(search, path, inside):
    elsewhere, asked = inside
    with leading(path, elsewhere) as host:
        with pytest.raises(LandslideError, match=f"{elsewhere}.*is not allowed"):
            search(f"http://{host}", [host])
    assert asked == []


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.__name__)
def test_a_search_is_sent_on_to_an_allowed_host(search, inside):
    there, asked = inside
    with leading("/search", there) as host:
        search(f"http://{host}", [host, there])
    assert asked


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.__name__)
def test_a_next_page_elsewhere_is_not_asked_for(search, inside):
    elsewhere, asked = inside
    with listing(ITEM, links=lambda _root: [{"rel": "next", "href": f"http://{elsewhere}/search"}]) as host:
        with pytest.raises(LandslideError, match="is not allowed"):
            search(f"http://{host}", [host])
    assert asked == []


def test_a_detection_asks_with_its_password_its_own_host_only():
    told = {}

    def heard(name):
        class Heard(Search):
            features = [ITEM]

            def do_GET(self):
                told.setdefault(name, set()).add(self.headers["Authorization"])
                super().do_GET()

            def links(self, _root):
                return next_page if name == "own" else []

        return served(Heard)

    with ExitStack() as stack:
        own, other = (stack.enter_context(heard(name)) for name in ("own", "other"))
        next_page = [{"rel": "next", "href": f"http://{other}/search"}]
        detection(f"http://me:word@{own}", [own, other])
    assert told == {"own": {"Basic bWU6d29yZA=="}, "other": {None}}


def test_a_detection_refuses_an_api_without_end(monkeypatch):
    monkeypatch.setattr("catalog.stac_api.MAX_PAGES", 3)
    with listing(ITEM, links=lambda root: [{"rel": "next", "href": f"{root}/search"}]) as host:
        with pytest.raises(LandslideError, match="lists more than 3 items; expected fewer; narrow the days"):
            detection(f"http://{host}", [host])
