"""Watching earthquakes: a poll of the feed; what qualifies is told to Prefect, which starts the response."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.events import Event
from prefect.events.clients import get_events_client

from catalog.markdown import plain
from catalog.policy import load_policy
from catalog.schema import LandslideError, StoreError
from catalog.watching import Poll, poll
from catalog.watchlist import Announcement
from flows.guarded import guarded_flow
from flows.places import free_places

ACTIVE: Final = "landslidenet.earthquake.active"


class FeedSilent(LandslideError):
    """The feed has not answered for so long that somebody has to look."""


def _run_name() -> str:
    return f"earthquakes · {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


@guarded_flow(name="watch-earthquakes", flow_run_name=_run_name)
def watch_earthquakes(policy: str | None = None) -> str:
    """What the poll came to, in a sentence.

    Earthquakes that qualify are announced once, and again for each revision that matters; the response to them is
    another flow. A poll that is not answered changes nothing and completes with a warning.

    Args:
        policy: Policy file (YAML) on the worker; empty = that of LANDSLIDENET_POLICY.

    Raises: FeedSilent when no poll was good for `silence_hours`; InputError for the policy; StoreError for a damaged
    watch list, or, once the others are decided upon and told, when something went wrong with an earthquake.

    """
    free_places()
    told = load_policy(policy)
    now = datetime.now(UTC)
    found = poll(told, now=now, emit=announce)
    logger = get_run_logger()
    for warning in found.warnings:
        logger.warning("%s", warning)
    for decision in found.decisions:
        logger.info("%s is %s: %s", decision.event_id, decision.state, decision.reason)
    if found.decisions:
        create_markdown_artifact(key="earthquakes", markdown=as_markdown(found), description="Decisions of a poll")
    if not found.is_good and found.silent > timedelta(hours=told.earthquakes.silence_hours):
        raise FeedSilent(
            f"no good poll for {found.silent / timedelta(hours=1):.1f} h; last: {'; '.join(found.warnings)[:500]}; "
            "check the network and `feed`, `query` and `hosts` of the policy; the gap is caught up with by itself"
        )
    if found.failures:
        raise StoreError(f"{summary(found)}; of {len(found.failures)} that failed: {'; '.join(found.failures)}")
    return summary(found)


def announce(announcement: Announcement) -> None:
    """Emit an announcement as a Prefect event; it has arrived when this returns. A revision's event id is always its.

    `emit_event` would only queue it: what is queued is lost with the process, and its failures are swallowed.
    """
    resource = {
        "prefect.resource.id": f"landslidenet.event.{announcement.event_id}",
        "prefect.resource.name": announcement.title,
    }
    payload = {
        "event_id": announcement.event_id,
        "title": announcement.title,
        "revision": announcement.revision,
        "reason": announcement.reason,
    }
    now = datetime.now(UTC)
    asyncio.run(_send(Event(occurred=now, event=ACTIVE, resource=resource, payload=payload, id=announcement.uuid)))


async def _send(event: Event) -> None:
    async with get_events_client(checkpoint_every=1) as client:
        await client.emit(event)


def summary(found: Poll) -> str:
    """A poll in a sentence, as the run's result."""
    if not found.is_good:
        return f"not answered in whole ({len(found.warnings)} warnings); nothing is lost, the next poll goes on"
    active = len(found.watchlist.active())
    return f"{len(found.decisions)} decisions, {len(found.announced)} announced; {active} active"


def as_markdown(found: Poll) -> str:
    """The decisions of a poll as a table."""
    rows = [f"| {d.event_id} | {plain(d.title)} | {d.state} | {plain(d.reason)} |" for d in found.decisions]
    return "\n".join(["| earthquake | title | state | why |", "|---|---|---|---|", *rows])
