"""Commands of those on duty: respond to an event, poll the watchers once, start the whole service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from catalog.config import environment
from catalog.paths import expand_home
from catalog.policy import Policy, load_policy
from catalog.schema import LandslideError
from flows.ending import signals_left_alone
from flows.surroundings import check_prefect_home
from flows.terminal import err_console, flow_run, print_end


def respond(
    event_id: Annotated[str, typer.Argument(help="USGS id of an event, e.g. us2000h8ty.")],
    policy: Annotated[Path | None, typer.Option(help="YAML file; else LANDSLIDENET_POLICY's.")] = None,
    event: Annotated[
        str | None, typer.Option(help="Event file or USGS id, where it is not watched; needs --aoi.")
    ] = None,
    aoi: Annotated[str | None, typer.Option(help="Vector file: its area of interest; needs --event.")] = None,
) -> None:
    """Bring an event's inventory up to date with the imagery there is. Lines on stdout: folders of new versions."""
    check_prefect_home()
    _check_event(load_policy(_named(policy)).state, event_id, event=event, aoi=aoi)
    from flows.respond import respond as respond_flow

    for folder in _ended(respond_flow, event_id, policy=_named(policy), event=event, aoi=aoi) or ():
        print_end(Path(folder))
        typer.echo(folder)


def _check_event(state: str, event_id: str, *, event: str | None, aoi: str | None) -> None:
    """Nothing for an event that can be responded to; a bad one is a message, before anything starts."""
    from catalog.responses import folder_of, open_event, read_named

    folder_of(state, event_id)
    if event or aoi:
        read_named(event_id, event=event, aoi=aoi)
    else:
        open_event(state, event_id)


def watch(
    policy: Annotated[Path | None, typer.Option(help="YAML file; else LANDSLIDENET_POLICY's.")] = None,
) -> None:
    """Read the earthquake feed once, and look for imagery of every active event once.

    With a Prefect server (`landslidenet up`) what is new starts a response; without one, `respond` does.
    """
    rules = load_policy(_named(policy))  # a bad one is a message, before anything starts
    check_prefect_home()
    failures = _unread_feed(rules)
    from catalog.apart import kept_apart
    from flows.watch_earthquakes import watch_earthquakes
    from flows.watch_imagery import watch_imagery

    for flow in (watch_imagery,) if failures else (watch_earthquakes, watch_imagery):
        with kept_apart(flow.name, failures):
            _ended(flow, policy=_named(policy))
    if failures:
        raise LandslideError("; ".join(failures))


def _unread_feed(policy: Policy) -> list[str]:
    """Why the feed cannot be read, said at once; nothing where it can be, or where no event waits for imagery.

    Raises: Unanswered when it cannot be read and there is nothing else to do.
    """
    from catalog.responses import known_events
    from catalog.watching import check_feed
    from catalog.web import Unanswered

    try:
        check_feed(policy)
    except Unanswered as error:
        if not known_events(policy.state):
            raise
        err_console.print(str(error), markup=False, soft_wrap=True)
        return [str(error)]
    return []


def _named(policy: Path | None) -> str | None:
    return str(Path(expand_home(str(policy))).resolve()) if policy else None


def _ended(flow: Any, *arguments: str, **told: str | None) -> Any:  # noqa: ANN401 - Prefect's flow, and what it returns
    """What a flow returns; its closing message is told. Raises: LandslideError, or the flow's own kind of it."""
    from tasks.artifacts import following

    with flow_run() as follow, following(follow):
        state = flow(*arguments, **told, return_state=True)
        if state.message and state.is_completed():
            err_console.print(state.message, markup=False, soft_wrap=True)
        returned = state.result(raise_on_failure=False)
    if isinstance(returned, LandslideError):
        raise returned
    if not state.is_completed():
        raise LandslideError(f"{flow.name}: {state.message}")
    return returned


def up(
    policy: Annotated[Path | None, typer.Option(help="YAML file: which earthquakes, imagery, retention.")] = None,
    host: Annotated[str, typer.Option(help="Address to serve on; others than loopback need a password.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the Prefect server and its UI.", min=1, max=65535)] = 4200,
    home: Annotated[Path, typer.Option(help="Folder of Prefect's database and the logs.")] = Path("service"),
) -> None:
    """Start everything on this machine: Prefect server, deployments and worker. Ctrl-C stops it.

    The line on stdout is the address of the UI. The same --home keeps the history of runs.
    """
    from flows.service import Service, run_service

    told = str(policy.resolve()) if policy else environment("LANDSLIDENET_POLICY") or None
    service = Service(home=home.resolve(), host=host, port=port, policy=told)
    with signals_left_alone():
        run_service(service, say=lambda line: err_console.print(line, markup=False, soft_wrap=True), ready=typer.echo)
