"""Which earthquakes are responded to: magnitude, depth, region and alerts against the policy. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from catalog.comcat import Quake
from catalog.config import Event
from catalog.policy import QuakePolicy


@dataclass(frozen=True)
class _Bar:
    """What a place asks of an earthquake."""

    magnitude: float
    depth_km: float
    where: str
    ignored: bool


def _bar(event: Event, policy: QuakePolicy) -> _Bar:
    place = None if event.longitude is None or event.latitude is None else (event.longitude, event.latitude)
    region = next((region for region in policy.regions if place and region.holds(*place)), None)
    if region is None:
        return _Bar(policy.min_magnitude, policy.max_depth_km, "", ignored=False)
    return _Bar(
        policy.min_magnitude if region.min_magnitude is None else region.min_magnitude,
        policy.max_depth_km if region.max_depth_km is None else region.max_depth_km,
        f" of region {region.name}",
        region.ignore,
    )


def is_candidate(quake: Quake, policy: QuakePolicy) -> bool:
    """Whether a summary is worth its detail: it is large enough, or may be with an alert. The others are not kept."""
    magnitude = quake.event.magnitude
    if magnitude is None or quake.deleted:
        return False
    alerted = quake.has_ground_failure or quake.pager in policy.pager_alerts
    return magnitude >= _bar(quake.event, policy).magnitude or (alerted and magnitude >= policy.alert_min_magnitude)


def qualifies(quake: Quake, policy: QuakePolicy) -> tuple[bool, str]:
    """Whether an earthquake is one to respond to, and why (not)."""
    event, bar = quake.event, _bar(quake.event, policy)
    if quake.kind != "earthquake":
        return False, f"it is no earthquake but of kind {quake.kind!r}"
    if event.magnitude is None:
        return False, "it has no magnitude"
    if bar.ignored:
        return False, f"what happens{bar.where} is ignored"
    if event.depth_km is not None and event.depth_km > bar.depth_km:
        return False, f"depth {event.depth_km:g} km is over {bar.depth_km:g} km{bar.where}"
    if event.magnitude >= bar.magnitude:
        return True, f"magnitude {event.magnitude:g} is at least {bar.magnitude:g}{bar.where}"
    alert = _alert(quake, policy)
    if alert and event.magnitude >= policy.alert_min_magnitude:
        return True, f"magnitude {event.magnitude:g} with {alert} is at least {policy.alert_min_magnitude:g}"
    return False, f"magnitude {event.magnitude:g} is under {bar.magnitude:g}{bar.where}, and no alert says otherwise"


def may_qualify(quake: Quake, policy: QuakePolicy) -> bool:
    """Whether the detail of a summary could still say what qualifies it: the colour of its landslide alert."""
    if quake.detailed or policy.query is None or not quake.has_ground_failure:
        return False
    return any(qualifies(replace(quake, landslide=colour), policy)[0] for colour in policy.landslide_alerts)


def _alert(quake: Quake, policy: QuakePolicy) -> str:
    if quake.landslide in policy.landslide_alerts:
        return f"a {quake.landslide} landslide alert"
    return f"a {quake.pager} PAGER alert" if quake.pager in policy.pager_alerts else ""
