"""The watcher of imagery: for every open event that is due, what would improve its inventory is looked for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from prefect import get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.events import Event, Resource
from prefect.events.clients import get_events_client
from prefect.states import Completed, Failed

from catalog.apart import kept_apart
from catalog.events import event_title
from catalog.locks import Busy, hold_event
from catalog.policy import Policy, load_policy
from catalog.responses import (
    Response,
    after_search,
    close_or_open,
    is_due,
    is_to_announce,
    known_events,
    read_response,
    write_response,
)
from catalog.watchlist import load_watchlist
from flows.guarded import guarded_flow
from flows.places import free_places
from tasks.outlook import Outlook, PartOutlook, look

NEW_IMAGERY: Final = "landslidenet.imagery.new"

GONE: Final = ("deleted", "merged")
"""States on the watch list of earthquakes that were none, or are another one: no imagery is looked for."""
BUSY_S: Final = 2.0
"""How long an event that a response holds is waited for: it is looked at the next time."""


def _run_name() -> str:
    return f"imagery · {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


@guarded_flow(name="watch-imagery", flow_run_name=_run_name)
def watch_imagery(policy: str | None = None) -> State[Any]:
    """Search imagery for every open event that is due; what improves an inventory is told as a Prefect event.

    One event's failure does not stop the others, whatever it is; the run's state says it.

    Args:
        policy: Policy file (YAML) on the worker; empty = that of LANDSLIDENET_POLICY.

    Raises: InputError for a policy that cannot be worked with.

    """
    free_places()
    log, rules = get_run_logger(), load_policy(policy)
    rows: list[dict[str, str]] = []
    failures, broken = list[str](), 0
    gone: dict[str, str] = {}
    with kept_apart("earthquakes", failures):
        gone = {known.id: known.reason for known in load_watchlist(Path(rules.state)).events if known.state in GONE}
    for event_id in known_events(rules.state):
        failed = list[str]()
        told = ""
        with kept_apart(event_id, failed):
            told = gone.get(event_id) or _watch(rules, event_id, now=datetime.now(UTC), failures=failed)
        told = "; ".join(filter(None, (told, *(f"failed: {failure}" for failure in failed))))
        failures += failed
        broken += bool(failed)
        log.info("%s: %s", event_id, told)
        rows.append({"event": event_id, "outcome": told})
    if rows:
        create_table_artifact(table=rows, key="imagery", description="What was looked for, event by event")
    if failures:
        return Failed(message=f"{broken} of {len(rows)} events failed: {'; '.join(failures)}")
    return Completed(message=f"{len(rows)} events looked at", data=rows)


def _watch(policy: Policy, event_id: str, *, now: datetime, failures: list[str]) -> str:
    """What came of an event, in words."""
    if not is_due(read_response(policy.state, event_id), now, policy.imagery):
        return "not due"
    try:
        with hold_event(policy.state, event_id, timeout_s=BUSY_S):
            return _look_for(policy, event_id, now=now, failures=failures)
    except Busy:
        return "a response is running"


def _look_for(policy: Policy, event_id: str, *, now: datetime, failures: list[str]) -> str:
    outlook = look(policy, event_id, now=now)
    failures += outlook.failed
    response = after_search(
        outlook.response,
        policy.imagery,
        now=now,
        improves=outlook.improves,
        expected=outlook.expected,
        told=outlook.told,
    )
    better = [part for part in outlook.parts if part.improves]
    unsaid = [part for part in better if is_to_announce(response, part.key, now)]
    if unsaid:
        _announce(outlook, unsaid, now=now)
        announced = response.announced | {part.key: now for part in unsaid}
        response = response.model_copy(update={"announced": announced})
    told = "; ".join(f"{part.part.name}: {part.why}" for part in outlook.parts)
    response = _closed(response, outlook, policy, now=now, better=bool(better))
    write_response(policy.state, response)
    return f"{response.reason}; {told}" if response.state == "closed" else told


def _announce(outlook: Outlook, parts: Sequence[PartOutlook], *, now: datetime) -> None:
    """Tell Prefect, which starts a response; its id is made of what was found, so that one telling is one event."""
    event = outlook.event
    told = Event(
        event=NEW_IMAGERY,
        resource=Resource(
            {
                "prefect.resource.id": f"landslidenet.event.{event.id}",
                "prefect.resource.name": event_title(event),
            }
        ),
        payload={
            "event_id": event.id,
            "title": event.title,
            "revision": parts[0].imagery,
            "blocks": {part.part.name: len(part.reasons) for part in parts},
        },
        id=announcement_id(event.id, [part.key for part in parts], outlook.response.announced),
        occurred=now,
    )
    asyncio.run(_emit(told))


async def _emit(event: Event) -> None:
    """Emit an event; returns when the server has it."""
    async with get_events_client(checkpoint_every=1) as client:
        await client.emit(event)


def announcement_id(event_id: str, keys: Sequence[str], announced: dict[str, datetime]) -> UUID:
    """The id of a telling: the same for the same imagery, another where the first telling was lost."""
    lost = [announced[key].isoformat() for key in keys if key in announced]
    return uuid5(NAMESPACE_URL, "/".join([f"landslidenet.event.{event_id}", *sorted(keys), *lost]))


def _closed(response: Response, outlook: Outlook, policy: Policy, *, now: datetime, better: bool) -> Response:
    """The response, closed when nothing more is looked for: the last search was after the last day."""
    days, time_utc = policy.imagery.days_after, outlook.event.time_utc
    last = None if time_utc is None or better else time_utc + timedelta(days=days)
    return close_or_open(response, last=last, now=now, why=f"{days} days after the event no more imagery is looked for")
