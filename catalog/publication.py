"""Publishing: every file of a version in a hidden folder, which takes the version's name in one step.

That step is the only moment at which a version is published. What comes before it leaves nothing, what comes after it
can be done again.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.errors import RasterioError

from catalog.export import WRITERS, read_preview, write_run
from catalog.files import sync
from catalog.folders import RUN, read_run
from catalog.leftovers import cleared
from catalog.product import Product, check_product
from catalog.schema import StoreError
from catalog.secrets import hidden
from catalog.stac import write_collection
from catalog.versions import next_version

log = logging.getLogger(__name__)

UNWRITABLE: Final = (OSError, RasterioError, DataSourceError, DataLayerError, sqlite3.Error)
"""What the writers raise of a disk that is full or cannot be written to."""
RUN_ID: Final = "run"
"""Key of a product's provenance: the id of the run that made it."""


def publish(product: Product, out: Path, *, closing: Callable[[], Mapping[str, Any]] = dict) -> Path:
    """Folder `out/event_id/vN` with every file of `WRITERS` and `run.json`; it appears at once, whole, or not at all.

    Where this very run has published it already, only what follows is done again.

    `closing` gives the provenance that is known only when everything but `run.json` is written.

    Raises: StoreError when that version is another run's or cannot be written; InputError when the product breaks its
    contract.
    """
    check_product(product)
    product = _without_secrets(product)
    event_dir = out / product.event_id
    final = event_dir / f"v{product.version}"
    if not _is_ours(final, product):
        if os.path.lexists(final):
            free = next_version(out, product.event_id)
            raise StoreError(f"{final} exists and is never overwritten; publish as version {free}")
        _write_version(product, final, closing=closing)
    _list(product, event_dir)
    return final


def _without_secrets(product: Product) -> Product:
    """The product with what is signed or secret hidden in every word that is written of it."""
    told = {name: hidden(getattr(product, name)) for name in ("config", "provenance", "used", "not_used", "warnings")}
    return replace(product, model_card=hidden(product.model_card), **told)


def _is_ours(final: Path, product: Product) -> bool:
    """Whether a version is there that the product's own run published, in an earlier try."""
    run = product.provenance.get(RUN_ID)
    return bool(run) and (final / RUN).is_file() and read_run(final).get("provenance", {}).get(RUN_ID) == run


def _write_version(product: Product, final: Path, *, closing: Callable[[], Mapping[str, Any]]) -> None:
    partial = final.with_name(f".{final.name}.partial")
    try:
        if partial.exists():  # of a run that was killed
            shutil.rmtree(partial)
        with cleared(partial):
            partial.mkdir(parents=True)
            _write_all(product, partial, closing=closing)
            for path in (*sorted(partial.iterdir()), partial):
                sync(path)
            partial.rename(final)
            sync(final.parent)
    except UNWRITABLE as error:
        raise StoreError(
            f"{final}: cannot be written ({error}); nothing was published; make room, then run the same command "
            "again: finished blocks are kept"
        ) from error


def _write_all(product: Product, folder: Path, *, closing: Callable[[], Mapping[str, Any]]) -> None:
    product = replace(product, preview=read_preview(product))
    for name, writer in WRITERS.items():
        started = perf_counter()
        path = writer(product, folder)
        log.info("%s v%d: %s, %d bytes, %.1f s", product.event_id, product.version, name, path.stat().st_size,
                 perf_counter() - started)  # fmt: skip
    write_run(replace(product, provenance={**product.provenance, **hidden(closing())}), folder)


def _list(product: Product, event_dir: Path) -> None:
    """The event's `collection.json`, which the next version writes anew; without it a version is published too."""
    try:
        write_collection(product, event_dir)
    except OSError as error:
        log.warning(
            "%s v%d is published; collection.json cannot be written (%s): the next version writes it anew",
            product.event_id, product.version, error,
        )  # fmt: skip
