"""Ways in which a store is damaged, by a disk, a person, a process that was ended: each at the n-th of its blocks."""

import json
import shutil

import geopandas as gpd
import pyogrio

PLACES = (0, 1, -1)
"""First, second and last block."""


class Kept:
    """The files of one store: of a step in the folder of an event."""

    def __init__(self, event, step):
        (self.zarr,) = event.glob(f"{step}-*.zarr")
        self.ledger = self.zarr.with_suffix(".ledger")

    def shards(self, variable=0):
        """The shards of a variable, in the order of their blocks."""
        arrays = sorted(path.parent for path in self.zarr.glob("*/zarr.json") if (path.parent / "c/0/0").exists())
        files = (path for path in arrays[variable % len(arrays)].glob("c/*/*") if path.is_file())
        return sorted(files, key=lambda path: (int(path.parent.name), int(path.name)))

    def entries(self):
        """The ledger's entries."""
        return sorted(self.ledger.glob("r*.json"))

    @property
    def complete(self):
        return self.ledger / "complete.json"


def _rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def _exchange(one, other):
    held = one.read_bytes(), other.read_bytes()
    one.write_bytes(held[1])
    other.write_bytes(held[0])


def _edit(path, change):
    told = json.loads(path.read_bytes())
    change(told)
    path.write_text(json.dumps(told))


def delete_shard(kept, n):
    kept.shards()[n].unlink()


def truncate_shard(kept, n):
    _rewrite(kept.shards()[n], lambda held: held[: len(held) // 2])


def empty_shard(kept, n):
    _rewrite(kept.shards()[n], lambda held: b"")


def zero_shard(kept, n):
    _rewrite(kept.shards()[n], lambda held: bytes(len(held)))


def flip_a_bit(kept, n):
    shard = kept.shards()[n]
    held = bytearray(shard.read_bytes())
    held[len(held) * 7 // 8] ^= 4
    shard.write_bytes(held)


def swap_shards(kept, n):
    shards = kept.shards()
    _exchange(shards[n], shards[(n + 1) % len(shards)])


def lay_a_shard_over_another(kept, n):
    shards = kept.shards(variable=-1)
    shutil.copyfile(shards[n - 1], shards[n])


def delete_a_blocks_files(kept, n):
    entry = kept.entries()[n]
    shard = "/".join(map(str, json.loads(entry.read_bytes())["shard"]))
    for path in kept.zarr.glob(f"*/c/{shard}"):
        path.unlink()


def edit_entry(kept, n):
    _edit(kept.entries()[n], lambda told: told.update(sha256="0" * 64))


def entry_of_another_store(kept, n):
    _edit(kept.entries()[n], lambda told: told.update(key="stranger-0123456789ab"))


def empty_entry(kept, n):
    kept.entries()[n].write_bytes(b"")


def tear_entry(kept, n):
    _rewrite(kept.entries()[n], lambda held: held[: len(held) // 2])


def delete_entry(kept, n):
    kept.entries()[n].unlink()


def swap_entries(kept, n):
    entries = kept.entries()
    _exchange(entries[n], entries[(n + 1) % len(entries)])


def forge_complete(kept, n):
    """It says that all is done, of which one block is not."""
    delete_shard(kept, n)
    delete_entry(kept, n)


def delete_complete(kept, n):
    kept.complete.unlink()


def empty_complete(kept, n):
    kept.complete.write_bytes(b"")


def damage_metadata_of_array(kept, n):
    _rewrite(sorted(kept.zarr.glob("*/zarr.json"))[n], lambda held: held[: len(held) // 2])


def change_metadata_of_array(kept, n):
    def other_fill(told):
        told["fill_value"] = 0
        told["attributes"] = {}

    path = kept.shards(n)[0].parents[2] / "zarr.json"
    _edit(path, other_fill)


def delete_metadata_of_array(kept, n):
    sorted(kept.zarr.glob("*/zarr.json"))[n].unlink()


def damage_metadata_of_group(kept, n):
    _rewrite(kept.zarr / "zarr.json", lambda held: held[: len(held) // 2])


def delete_metadata_of_group(kept, n):
    (kept.zarr / "zarr.json").unlink()


def delete_store(kept, n):
    shutil.rmtree(kept.zarr)


def delete_ledger(kept, n):
    shutil.rmtree(kept.ledger)


DAMAGES = (
    delete_shard, truncate_shard, empty_shard, zero_shard, flip_a_bit, swap_shards, lay_a_shard_over_another,
    delete_a_blocks_files, edit_entry, entry_of_another_store, empty_entry, tear_entry, delete_entry, swap_entries,
    forge_complete, delete_complete, empty_complete, damage_metadata_of_array, change_metadata_of_array,
    delete_metadata_of_array, damage_metadata_of_group, delete_metadata_of_group, delete_store, delete_ledger,
)  # fmt: skip
SILENT = (delete_complete, delete_ledger)
"""What looks like a run that was ended: nothing to be warned of."""
STEPS = ("ingest_post", "ingest_pre", "elevation", "terrain", "hydrology", "change", "probability", "class")
SAME = ("class.tif", "probability.tif", "disagreement.tif", "inventory.parquet", "map.png")
"""Files of a product that come out byte for byte the same."""


def differences(product, other):
    """Files of two products that do not say the same."""
    layers = pyogrio.list_layers(product / "inventory.gpkg")[:, 0]
    same = all(
        gpd.read_file(product / "inventory.gpkg", layer=name).equals(
            gpd.read_file(other / "inventory.gpkg", layer=name)
        )
        for name in layers
    )
    differ = [name for name in SAME if (product / name).read_bytes() != (other / name).read_bytes()]
    return differ + ([] if same else ["inventory.gpkg"])
