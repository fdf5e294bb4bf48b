"""Flows as this house has them: what they are given is refused in its own words, and Prefect is told no secret.

Secrets stand neither in the parameters that Prefect stores, nor in how a run ended, nor in its log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import unwrap
from typing import Any, Final, ParamSpec, TypeVar, get_args, get_type_hints

from prefect import Flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from pydantic import TypeAdapter, ValidationError

from catalog.apart import quiet
from catalog.config import Strict
from catalog.named_secrets import stored
from catalog.schema import InputError
from catalog.secrets import guard_logs, redact
from catalog.validation import expected

P = ParamSpec("P")
R = TypeVar("R")
WAS_TOLD: Final = (
    "parameters of this run held secrets, which Prefect had stored and its UI shown; they are hidden there now: name "
    "secrets, ${LANDSLIDENET_SECRET_...}, variables of the worker, and change those that were shown"
)


class GuardedFlow(Flow[P, R]):
    """A flow of which Prefect is told, and keeps, no secret."""

    def __init__(
        self,
        fn: Callable[P, R],
        *,
        flow_run_name: Callable[[], str] | str | None = None,
        **options: Any,  # noqa: ANN401 - Prefect's
    ) -> None:
        said = (lambda: redact(flow_run_name())) if callable(flow_run_name) else flow_run_name
        super().__init__(_guarded(fn), flow_run_name=said, **options)

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters as the flow takes them; what is inside a configuration is checked by the flow.

        Raises: InputError naming each that does not fit.
        """
        hints, wrong = get_type_hints(unwrap(self.fn), include_extras=True), list[str]()
        taken = {name: _taken(name, value, hints[name], wrong) for name, value in parameters.items()}
        if wrong:
            raise InputError(f"{self.name}: {'; '.join(wrong)}")
        return taken

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters as Prefect stores them."""
        return shown(super().serialize_parameters(parameters))


def guarded_flow(**options: Any) -> Callable[[Callable[P, R]], GuardedFlow[P, R]]:  # noqa: ANN401 - Prefect's
    """`prefect.flow` for flows that may be given secrets."""
    return lambda fn: GuardedFlow(fn, **options)


def shown(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A flow's parameters without secrets."""
    return {
        name: stored(value) if isinstance(value, Mapping) else stored({name: value})[name]
        for name, value in parameters.items()
    }


def _taken(name: str, value: object, kind: Any, wrong: list[str]) -> Any:  # noqa: ANN401 - any annotation, and its values
    """A parameter's value as its type; what does not fit is added to `wrong`."""
    if isinstance(value, Strict) or (isinstance(value, Mapping) and dict[str, Any] in get_args(kind)):
        return value
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        wrong.append(f"`{name}`: got {value!r:.80}; expected {expected(kind)}")
        return value


def _guarded(fn: Callable[P, R]) -> Callable[P, R]:
    @wraps(fn)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        guard_logs()
        hide_stored_parameters()
        with quiet():
            return fn(*args, **kwargs)

    return run


def hide_stored_parameters() -> None:
    """Hide the secrets of this run's parameters where Prefect stores them; a deployment's are stored as they came."""
    context = FlowRunContext.get()
    told = context.flow_run.parameters if context and context.flow_run else {}
    if context is None or context.flow_run is None or (hidden := shown(told)) == told:
        return
    with get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, parameters=hidden)
    get_run_logger().warning(WAS_TOLD)
