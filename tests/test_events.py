import threading
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from catalog.config import data_dir
from catalog.events import load_event, parse_event
from catalog.schema import InputError

FEATURE = (
    '{"type": "Feature", "id": "us1", "properties": {"mag": 6.6, "time": 1536170879150, "title": "M 6.6"},'
    ' "geometry": {"type": "Point", "coordinates": [141.9, 42.7, 35]}}'
)


class Catalogue(BaseHTTPRequestHandler):
    def do_GET(self):
        known = "eventid=us1&" in self.path
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(FEATURE.encode() if known else b"Not found")

    def log_message(self, *_):
        pass


@pytest.fixture
def comcat_url():
    with ThreadingHTTPServer(("127.0.0.1", 0), Catalogue) as server:
        threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/query"
        server.shutdown()


def test_load_event_asks_comcat_for_an_id(comcat_url):
    assert load_event("us1", comcat_url=comcat_url).magnitude == 6.6


def test_load_event_says_when_comcat_does_not_know_the_id(comcat_url):
    with pytest.raises(InputError, match="us9: the catalogue did not answer with it .*answered 404"):
        load_event("us9", comcat_url=comcat_url)


def test_load_event_says_when_comcat_does_not_answer(comcat_url):
    with pytest.raises(InputError, match="did not answer"):
        load_event("us1", comcat_url="http://127.0.0.1:9/query")


def test_load_event_takes_an_id_for_one_where_a_folder_is_called_so(comcat_url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "us1").mkdir()  # a product's, or a response's
    assert load_event("us1", comcat_url=comcat_url).id == "us1"


def test_load_event_reads_our_own_file(tmp_path):
    path = tmp_path / "event.json"
    path.write_text('{"id": "sim-1", "title": "Simulated", "time_utc": "2020-01-02T03:04:05Z", "magnitude": 6.5}')
    assert load_event(str(path)).time_utc == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_load_event_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        load_event(str(tmp_path / "no.json"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "not JSON"),
        ('{"type": "FeatureCollection", "features": []}', "no single event"),
        ("[1]", "no single event"),
        ('{"type": "Feature", "id": "a", "properties": {}, "geometry": null}', "not ComCat's"),
        ('{"id": "a", "time_utc": "2020-01-02T03:04:05"}', "without a time zone"),
        ('{"id": "a", "depth": 3}', "unknown key `depth`"),
    ],
)
def test_parse_event_refuses_what_is_no_event(text, match):
    with pytest.raises(InputError, match=match):
        parse_event(text, where="x.json")


def test_parse_event_refuses_what_no_json_is_allowed_to_hold():
    with pytest.raises(InputError, match="NaN is no JSON number"):
        parse_event('{"id": "a", "magnitude": NaN}', where="x.json")


@pytest.mark.real
def test_load_event_reads_the_comcat_detail_of_hokkaido():
    event = load_event(str(data_dir() / "usgs/comcat_detail/us2000h8ty_detail_superseded.geojson"))
    assert (event.id, event.magnitude, event.depth_km) == ("us2000h8ty", 6.6, 35)
    assert event.time_utc == datetime(2018, 9, 5, 18, 7, 59, 150000, tzinfo=UTC)
