"""Real earthquakes as ComCat told of them, step by step, and servers that tell it."""

import json
import re
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from catalog.comcat import CONTENTS
from catalog.config import data_dir

EVENTS = ("us2000h8ty", "us2000ar20", "us1000778i", "ci3144585")
USGS = "https://earthquake.usgs.gov"
CIRCLE_KM = 30.0


@lru_cache
def document(event_id):
    """The detail document of a real earthquake, with its superseded products where we have them."""
    (path,) = (data_dir() / "usgs/comcat_detail").glob(f"{event_id}_detail*.geojson")
    found = json.loads(path.read_text())
    for product in (p for listed in found["properties"]["products"].values() for p in listed):
        product["contents"] = {k: v for k, v in dict(product["contents"]).items() if k in CONTENTS}  # else 1 MB
    return found


@lru_cache
def noise():
    """109 real earthquakes under magnitude 0.1."""
    (path,) = (data_dir() / "usgs/comcat_feed").glob("*starttime_2017*")
    return json.loads(path.read_text())["features"]


def update_times(event_id):
    """Milliseconds of every product's update, in order."""
    products = document(event_id)["properties"]["products"]
    return sorted({p["updateTime"] for listed in products.values() for p in listed})


def as_of(event_id, ms):
    """The detail document as it was at a time: products updated until then, and what they say."""
    whole = document(event_id)
    products = {
        k: [p for p in listed if p["updateTime"] <= ms] for k, listed in whole["properties"]["products"].items()
    }
    products = {kind: listed for kind, listed in products.items() if listed}
    origin = _preferred(products["origin"])["properties"]
    ids = {p["properties"]["eventsource"] + p["properties"]["eventsourcecode"] for p in products["origin"]}
    pagers = products.get("losspager")
    properties = {
        **whole["properties"],
        "mag": float(origin["magnitude"]),
        "time": round(datetime.fromisoformat(origin["eventtime"]).timestamp() * 1000),
        "updated": max(p["updateTime"] for listed in products.values() for p in listed),
        "alert": _preferred(pagers)["properties"].get("alertlevel") if pagers else None,
        "ids": f",{','.join(sorted(ids))},",
        "types": f",{','.join(products)},",
        "products": products,
    }
    place = [float(origin[key]) for key in ("longitude", "latitude", "depth")]
    return {
        "type": "Feature",
        "id": origin["eventsource"] + origin["eventsourcecode"],
        "properties": properties,
        "geometry": {"type": "Point", "coordinates": place},
    }


def _preferred(listed):
    return max(listed, key=lambda p: (p["preferredWeight"], p["updateTime"]))


def summary(feature):
    """A detail as the feed lists it."""
    properties = {k: v for k, v in feature["properties"].items() if k != "products"}
    return {**feature, "properties": properties}


def collection(features, host=USGS):
    """A feed document; addresses lead to another host."""
    return json.dumps({"type": "FeatureCollection", "features": list(features)}).replace(USGS, host).encode()


def utc(ms):
    """The time of milliseconds since 1970."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def contour(longitude, latitude, radius_km, value=10.0):
    """A GeoJSON of one round contour line, as ShakeMap writes them."""
    angles = np.linspace(0, 2 * np.pi, 41)
    x = longitude + radius_km / 111.2 / np.cos(np.radians(latitude)) * np.cos(angles)
    points = np.column_stack([x, latitude + radius_km / 111.2 * np.sin(angles)])
    points[-1] = points[0]
    geometry = {"type": "MultiLineString", "coordinates": [points.tolist()]}
    feature = {"type": "Feature", "properties": {"value": value, "units": "pctg"}, "geometry": geometry}
    return json.dumps({"type": "FeatureCollection", "features": [feature]}).encode()


def real_map(path):
    """A contour for a real ShakeMap's address: its size follows the peak that the product states."""
    told = re.fullmatch(r"/product/shakemap/(\w+)/(\w+)/(\d+)/download/cont_pga\.json", path)
    for event_id in EVENTS if told else ():
        for product in document(event_id)["properties"]["products"]["shakemap"]:
            if (product["source"], product["updateTime"]) == (told[2], int(told[3])) and product["code"] == told[1]:
                stated = product["properties"]
                peak = float(stated["maxpga"])
                peak = peak * 100 if peak < 5 else peak  # the atlas states g, others %g
                radius_km = CIRCLE_KM * np.sqrt(peak / 20)
                return contour(float(stated["longitude"]), float(stated["latitude"]), radius_km)
    return None


@contextmanager
def serving(answer):
    """`host:port` of a loopback server; `answer(path)` gives the body, None = 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = answer(self.path)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
