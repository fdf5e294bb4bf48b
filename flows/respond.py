"""The response to an event: whatever imagery there is becomes the next version of its inventory, once."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any, Final

from prefect import get_run_logger, runtime, tags, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from catalog.apart import kept_apart
from catalog.config import Event, EventId, parse_config
from catalog.events import event_title
from catalog.locks import hold_event, hold_products
from catalog.markdown import plain
from catalog.policy import Policy, load_policy
from catalog.responses import (
    Claim,
    Response,
    Version,
    after_search,
    after_version,
    open_event,
    published_from,
    read_named,
    read_response,
    save_event,
    write_response,
)
from catalog.schema import LandslideError
from catalog.web import Unanswered
from flows.guarded import guarded_flow
from tasks.outlook import Outlook, PartOutlook, detection_of, inputs_of, look, version_of

WAITING: Final = "Waiting"
"""Name of the completed state of a response without imagery; flows/automations.yaml knows it, too."""
SHOWN_BLOCKS: Final = 50


class DetectionFailed(LandslideError):
    """A version that could not be made."""


def _run_name() -> str:
    told = runtime.flow_run.parameters
    event_id = str(told.get("event_id", "event"))
    try:
        policy = load_policy(told.get("policy"))
        response = read_response(policy.state, event_id)
        title = event_title(open_event(policy.state, event_id)[0])
    except LandslideError:
        return event_id  # the flow itself says what is wrong
    number = 1 + max((version.number for version in response.versions), default=0) if response else 1
    return f"{title} v{number}"


@guarded_flow(name="respond", flow_run_name=_run_name)
def respond(
    event_id: EventId = "",
    policy: str | None = None,
    event: str | None = None,
    aoi: str | None = None,
) -> State[Any]:
    """Bring an event's landslide inventory up to date: search imagery, and publish a version if it improves a block.

    The same imagery makes one version, however often this runs. Without imagery the run completes as "Waiting".

    Args:
        event_id: USGS id of the event, e.g. us2000h8ty.
        policy: Policy file (YAML) on the worker; empty = that of LANDSLIDENET_POLICY.
        event: Event file or USGS id, of an event that is not watched; needs `aoi`.
        aoi: Vector file of its area of interest; needs `event`.

    Raises: InputError for an event or policy that cannot be worked with; Unanswered when no STAC API answers.

    """
    rules = load_policy(policy)
    if not (event or aoi):
        open_event(rules.state, event_id)  # an event that is not known leaves no folder behind
    with tags(f"event:{event_id}"), hold_event(rules.state, event_id):
        if event or aoi:
            save_event(rules.state, *read_named(event_id, event=event, aoi=aoi))
        return _bring_up_to_date(rules, event_id)


def _heals(_task: object, _run: object, state: Any) -> bool:  # noqa: ANN401 - prefect State
    return isinstance(state.result(raise_on_failure=False), Unanswered)


@task(
    name="search imagery", retries=2, retry_delay_seconds=20, retry_jitter_factor=0.5, retry_condition_fn=_heals,
    cache_policy=NO_CACHE, persist_result=False,
)  # fmt: skip
def search(policy: Policy, event_id: str) -> Outlook:
    """What there is to be done for an event."""
    return look(policy, event_id, now=datetime.now(UTC))


def _bring_up_to_date(policy: Policy, event_id: str) -> State[Any]:
    outlook = search(policy, event_id)
    response = after_search(
        outlook.response,
        policy.imagery,
        now=datetime.now(UTC),
        improves=outlook.improves,
        expected=outlook.expected,
        told=outlook.told,
    )
    write_response(policy.state, response)
    _show(outlook)
    made: list[Version] = []
    failures = list(outlook.failed)
    for found in (part for part in outlook.parts if part.improves):
        with kept_apart(found.part.name, failures):
            version = _make_version(policy, _known(policy, response), outlook.event, found)
            made.append(version)
    if failures:
        return Failed(message=f"{event_title(outlook.event)}: {'; '.join(failures)}")
    if made:
        told = "; ".join(f"v{v.number} of {v.part} is published: {v.folder}" for v in made)
        return Completed(
            message=f"{told}. {'; '.join(part.why for part in outlook.parts)}", data=[v.folder for v in made]
        )
    return _nothing_made(outlook, response)


def _known(policy: Policy, response: Response) -> Response:
    """What is known of the response now: the parts before have written to it."""
    return read_response(policy.state, response.event_id) or response


def _nothing_made(outlook: Outlook, response: Response) -> State[Any]:
    why = "; ".join(f"{part.part.name}: {part.why}" for part in outlook.parts)
    if response.versions:
        return Completed(message=why, data=[])
    expected = "; ".join(response.expected)
    told = f"{why}; waiting since {response.waiting_since:%Y-%m-%d %H:%M} UTC; expected next: {expected}"
    return Completed(name=WAITING, message=told, data=[])


def _make_version(policy: Policy, response: Response, event: Event, found: PartOutlook) -> Version:
    """The version that was made; it is saved.

    Raises: DetectionFailed when the detection did not succeed; StoreError when an earlier product cannot be read.
    """
    log, now = get_run_logger(), datetime.now(UTC)
    product = None
    if any(claim.key == found.key for claim in response.claims):  # an earlier run died: it may have published
        earlier = published_from(policy.out, found.part.name, str(inputs_of(policy, event.id, found)))
        product = earlier[1] if earlier else None
        log.info("an earlier run began this version and %s", f"published {product}" if product else "did not end it")
    else:
        run = str(runtime.flow_run.id)
        claim = Claim(key=found.key, part=found.part.name, run=run, claimed_utc=now)
        response = response.model_copy(update={"claims": (*response.claims, claim)})
        write_response(policy.state, response)
    if product is None:
        from flows.detect import detect  # networks and engines: not loaded by a response that only waits

        log.info("%s: %s", found.part.name, found.why)
        names = policy.out, policy.root, found.part.name
        with hold_products(*names, timeout_s=math.inf):  # a person's own run may hold it
            state = detect(parse_config(detection_of(policy, event, found)), return_state=True)
        if not state.is_completed():
            raise DetectionFailed(
                f"the detection did not succeed: {state.message}; run this again once that is repaired, or name a "
                "damaged scene in the policy's `imagery: exclude:`"
            )
        product = str(state.result())
    version = version_of(policy, event.id, found, product=product, now=datetime.now(UTC))
    write_response(policy.state, after_version(response, version))
    return version


def _show(outlook: Outlook) -> None:
    """The decision as an artifact of the flow run."""
    create_markdown_artifact(as_markdown(outlook), key="response", description="What was decided, and why")


def as_markdown(outlook: Outlook) -> str:
    """The decision with its reasons."""
    lines = [f"# {plain(event_title(outlook.event))}"]
    for found in outlook.parts:
        lines.append(f"## {found.part.name}: {found.why}")
        rows = [f"| {block} | {', '.join(why)} |" for block, why in list(found.reasons.items())[:SHOWN_BLOCKS]]
        if rows:
            lines.append("\n".join(["| block | gets better by |", "|---|---|", *rows]))
        if len(found.reasons) > SHOWN_BLOCKS:
            lines.append(f"and {len(found.reasons) - SHOWN_BLOCKS} more blocks")
        for side, plan in found.sides:
            lines.append("\n".join([f"Scenes {side}-event, the preferred first:", *map(_scene_line, plan.scenes)]))
    lines += [f"- **{plain(sentence)}**" for sentence in outlook.told]
    lines += [f"- expected next: {sentence}" for sentence in outlook.expected]
    return "\n\n".join(lines)


def _scene_line(scene: Any) -> str:  # noqa: ANN401 - a Scene of tasks.planning
    cloud = "unknown" if scene.cloud_percent is None else f"{scene.cloud_percent:.0f} %"
    return f"- `{scene.id}` {scene.time_utc:%Y-%m-%d %H:%M} UTC, {scene.gsd_m:g} m, cloud {cloud}"
