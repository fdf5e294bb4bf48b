"""Imagery as it is served: COGs over HTTP with ranges, a real STAC API over their items, and servers that fail."""

import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import rasterio
from processes import free_port
from RangeHTTPServer import RangeRequestHandler
from rasterio.windows import Window

from catalog.items import LOCAL, local_item
from catalog.sensors import sensor

COLLECTION = "simulated"
RGB = sensor("rgb8")


class _Quiet(RangeRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(handler):
    """A server of a handler on loopback; what comes out is host:port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def files_of(folder):
    """Files of a folder over HTTP, with range requests."""
    return served(partial(_Quiet, directory=str(folder)))


class Answers(BaseHTTPRequestHandler):
    """A server of one answer: a status, a body, perhaps cut off, perhaps late."""

    status, body, promised, delay_s = 200, b"{}", None, 0.0

    def do_GET(self):
        time.sleep(self.delay_s)
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(self.promised or len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


def answering(**given):
    """A server that gives every request the same answer."""
    return served(type("Answering", (Answers,), given))


class Search(BaseHTTPRequestHandler):
    """The least that pystac-client takes for a STAC API: a landing page and one page of items, whatever they are."""

    features: list = []

    def do_GET(self):
        root = f"http://{self.headers['Host']}"
        landing = {
            "type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "-",
            "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
            "links": [{"rel": "self", "href": root}, {"rel": "root", "href": root},
                      *({"rel": "search", "href": f"{root}/search", "type": "application/geo+json", "method": method}
                        for method in ("GET", "POST"))],
        }  # fmt: skip
        page = {"type": "FeatureCollection", "features": self.features, "links": self.links(root)}
        body = json.dumps(page if self.path.startswith("/search") else landing).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def links(self, _root):
        return []

    def log_message(self, *_):
        pass


def listing(*features, links=None):
    """A STAC API that lists these items."""
    given = {"features": list(features)} | ({"links": lambda _self, root: links(root)} if links else {})
    return served(type("Listing", (Search,), given))


def cog_of(source, target, *, columns=(0.0, 1.0)):
    """A COG of a raster, or of some of its columns (shares of the width)."""
    with rasterio.open(source) as dataset:
        left, right = (round(share * dataset.width / 16) * 16 for share in columns)
        window = Window(left, 0, right - left, dataset.height)
        profile = {"driver": "COG", "count": dataset.count, "dtype": dataset.dtypes[0], "crs": dataset.crs}
        profile |= {"width": window.width, "height": window.height, "transform": dataset.window_transform(window)}
        with rasterio.open(target, "w", **profile, blocksize=128, compress="deflate", nodata=dataset.nodata) as out:
            out.write(dataset.read(window=window))
            for index, name in enumerate(dataset.descriptions, 1):
                out.set_band_description(index, name)
    return target


def item_of(path, base, *, item_id, taken, updated="2024-01-10T00:00:00Z", **properties):
    """The STAC item of a COG, as an API has it: its bands at their addresses."""
    item = local_item(path, RGB, time_utc=taken).to_dict(transform_hrefs=False)
    for asset in item["assets"].values():
        asset["href"] = f"{base}/{Path(path).name}"
    del item["properties"][LOCAL]
    told = {"updated": updated, "eo:cloud_cover": 0.0, **properties}
    return {**item, "id": item_id, "collection": COLLECTION, "properties": {**item["properties"], **told}}


class StacApi:
    """`rustac serve` over some items; another set of items starts it anew at the same address."""

    def __init__(self, folder):
        self.folder, self.port, self.running = Path(folder), free_port(), None
        self.url = f"http://127.0.0.1:{self.port}"

    def serve(self, *items):
        self.stop()
        self.folder.mkdir(exist_ok=True)
        collection = {
            "type": "Collection", "id": COLLECTION, "stac_version": "1.0.0", "description": "-", "license": "other",
            "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]},
                       "temporal": {"interval": [["2000-01-01T00:00:00Z", None]]}},
            "links": [],
        }  # fmt: skip
        for name, value in (("collection", collection), ("items", {"type": "FeatureCollection", "features": items})):
            (self.folder / f"{name}.json").write_text(json.dumps(value))
        files = [str(self.folder / f"{name}.json") for name in ("collection", *(["items"] if items else []))]
        rustac = Path(sys.executable).parent / "rustac"
        self.log = (self.folder / "log").open("w")
        command = [str(rustac), "serve", *files, "--addr", f"127.0.0.1:{self.port}"]
        self.running = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.running.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError("rustac did not start")

    def stop(self):
        if self.running is not None:
            self.running.terminate()
            self.running.wait()
            self.log.close()
            self.running = None


DAY = datetime(2024, 1, 6, tzinfo=UTC)
