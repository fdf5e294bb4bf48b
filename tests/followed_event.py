"""An event that is followed: its state folder, its policy, its imagery on a server and a STAC API over it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import geopandas as gpd
import rasterio
import yaml
from shapely.geometry import box
from stac_server import COLLECTION, StacApi, cog_of, item_of

from catalog.config import Event
from catalog.events import load_event
from catalog.responses import read_response, save_event


class Followed:
    """An event of yesterday that is followed, its imagery as COGs on a server, and a STAC API that lists some of it."""

    def __init__(self, folder, scene, host):
        self.folder, self.host, self.api = folder, host, StacApi(folder / "api")
        simulated = load_event(str(scene["event"]))
        now = datetime.now(UTC).replace(microsecond=0)
        self.event = Event(**{**simulated.model_dump(), "time_utc": now - timedelta(days=3)})
        with rasterio.open(scene["post"]) as dataset:
            bounds, epsg = dataset.bounds, dataset.crs.to_epsg()
        self.area = gpd.GeoSeries([box(*bounds)], crs=epsg).to_crs(4326).iloc[0]
        self.state = str(folder / "state")
        save_event(self.state, self.event, self.area)
        source = {"url": self.api.url, "collection": COLLECTION, "sensor": "rgb8"}
        rules = {
            "root": str(folder / "store"), "out": str(folder / "out"), "state": self.state, "hosts": [host],
            "imagery": {"sources": [source], "timeout_s": 10},
            "detection": {"block": 256, "workers": 1, "gsd": 10.0},
        }  # fmt: skip
        self.policy = str(folder / "policy.yaml")
        Path(self.policy).write_text(yaml.safe_dump(rules))
        (folder / "files").mkdir()
        for name, source, columns in (
            ("pre", "pre", (0, 1)), ("west", "post", (0, 0.5)), ("east", "post", (0.5, 1)),
        ):  # fmt: skip
            cog_of(scene[source], folder / f"files/{name}.tif", columns=columns)

    def item(self, name, *, days, **properties):
        taken = self.event.time_utc + timedelta(days=days)
        return item_of(
            self.folder / f"files/{name}.tif", f"http://{self.host}", item_id=name, taken=taken, **properties
        )

    def response(self):
        return read_response(self.state, self.event.id)

    def forget_the_pause(self):
        """The next search is due now."""
        path = Path(self.state) / self.event.id / "response.json"
        values = json.loads(path.read_text())
        path.write_text(json.dumps({**values, "next_search_utc": None}))

    def forget_the_last_version(self):
        """As if the run had been killed between publishing its version and writing that down."""
        path = Path(self.state) / self.event.id / "response.json"
        values = json.loads(path.read_text())
        made = values["versions"].pop()
        claim = {"key": made["key"], "part": made["part"], "run": "-", "claimed_utc": made["published_utc"]}
        path.write_text(json.dumps({**values, "claims": [claim]}))
