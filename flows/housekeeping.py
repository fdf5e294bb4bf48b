"""Stores and versions that the policy no longer keeps are deleted, and told of."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Final

from prefect import get_run_logger, runtime
from prefect.artifacts import create_table_artifact

from catalog.apart import kept_apart
from catalog.locks import Busy, hold_event, hold_products
from catalog.policy import Policy, load_policy
from catalog.responses import event_of
from catalog.retention import Removal, doubted_clock, plan_retention, read_held, remove
from catalog.schema import StoreError
from flows.guarded import guarded_flow
from flows.places import free_places

BUSY_S: Final = 2.0
"""How long an event that a response holds is waited for: its turn comes the next day."""


def _run_name() -> str:
    dry = runtime.flow_run.parameters.get("dry_run")
    return "housekeeping · dry run" if dry else "housekeeping"


@guarded_flow(name="housekeeping", flow_run_name=_run_name)
def housekeeping(policy: str | None = None, dry_run: bool = False) -> int:
    """Bytes that were deleted, or would be in a dry run; each deletion and its reason is a row of a table.

    Args:
        policy: Policy file (YAML) on the worker; empty = that of LANDSLIDENET_POLICY.
        dry_run: Say what would be deleted, and delete nothing.

    Raises: InputError for a policy that cannot be read; StoreError, once the rest is done, when something could not be
    listed or deleted.

    """
    free_places()
    told = load_policy(policy)
    rows, failures, unlisted, freed = [], list[str](), list[str](), 0
    planned = plan_retention(read_held(told.root, told.out, unlisted), told.retention, now=datetime.now(UTC))
    doubt = "" if dry_run else doubted_clock(told.state, datetime.now(UTC))
    for removal in planned:
        what = "failed"
        with kept_apart(removal.held.event_id, failures):
            what = "would be deleted" if dry_run else doubt or _carried_out(removal, told)
        freed += removal.held.size_bytes if what in ("deleted", "would be deleted") else 0
        rows.append(_row(removal, what))
    create_table_artifact(table=rows, key="housekeeping", description=f"Retention: {freed / 1e9:.2f} GB")
    get_run_logger().info("%d removals: %.2f GB%s", len(rows), freed / 1e9, " (dry run)" if dry_run else "")
    if failures or unlisted:
        raise StoreError(f"{len(failures)} of {len(rows)} removals failed: {'; '.join([*failures, *unlisted])}")
    return freed


def _carried_out(removal: Removal, policy: Policy) -> str:
    """What became of a removal; nothing is deleted of an event that another run holds."""
    event_id = event_of(policy.state, removal.held.event_id)
    try:
        with (
            nullcontext() if event_id is None else hold_event(policy.state, event_id, timeout_s=BUSY_S),
            hold_products(policy.out, policy.root, removal.held.event_id, timeout_s=BUSY_S),
        ):
            done = remove(removal, root=policy.root, out=policy.out)
    except Busy:
        return "kept: a response is running"
    return "deleted" if done else "kept: in use again"


def _row(removal: Removal, what: str) -> dict[str, str | int]:
    held = removal.held
    return {
        "event": held.event_id,
        "kind": held.kind,
        "place": held.places[-1],
        "bytes": held.size_bytes,
        "last written": held.changed.isoformat(timespec="minutes"),
        "why": removal.why,
        "what": what,
    }
