"""Stores and versions that the policy no longer keeps are deleted, and told of."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact

from catalog.policy import load_policy
from catalog.retention import Removal, plan_retention, read_held, remove


def _run_name() -> str:
    dry = runtime.flow_run.parameters.get("dry_run")
    return "housekeeping · dry run" if dry else "housekeeping"


@flow(name="housekeeping", flow_run_name=_run_name)
def housekeeping(policy: str | None = None, dry_run: bool = False) -> int:
    """Bytes that were deleted, or would be in a dry run; each deletion and its reason is a row of a table.

    Args:
        policy: Policy file (YAML) on the worker; empty = that of LANDSLIDENET_POLICY.
        dry_run: Say what would be deleted, and delete nothing.

    Raises: InputError for a policy that cannot be read; StoreError when something cannot be listed or deleted.

    """
    told = load_policy(policy)
    planned = plan_retention(read_held(told.root, told.out), told.retention, now=datetime.now(UTC))
    rows, freed = [], 0
    for removal in planned:
        done = dry_run or remove(removal, root=told.root, out=told.out)
        freed += removal.held.size_bytes if done else 0
        rows.append(_row(removal, "would be deleted" if dry_run else "deleted" if done else "kept: in use again"))
    create_table_artifact(table=rows, key="housekeeping", description=f"Retention: {freed / 1e9:.2f} GB")
    get_run_logger().info("%d of %d: %.2f GB%s", len(rows), len(planned), freed / 1e9, " (dry run)" if dry_run else "")
    return freed


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
