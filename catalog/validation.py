"""What does not fit a contract, in the project's words: pydantic finds it, and never speaks to a user."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import AwareDatetime, BaseModel, ValidationError
from pydantic.fields import FieldInfo

SHOWN_CHARACTERS: Final = 80
"""Of a value that does not fit."""
A_TIME: Final = "e.g. 2018-09-11T01:30:00Z"
PLAIN: Final[Mapping[Any, str]] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Path: "a path",
    datetime: f"a time, {A_TIME}",
    AwareDatetime: f"a time with its zone, {A_TIME}",
}


def reasons(
    error: ValidationError,
    kind: Any,  # noqa: ANN401 - any annotation
    *,
    quote: bool = True,
    fix: Callable[[str], str] = lambda _: "",
) -> list[str]:
    """A sentence for each key that does not fit: what, got, expected.

    kind : the type that was validated; its annotations say what was expected. quote : show what was got. fix : what to
    do about a missing key.
    """
    found: dict[str, list[Any]] = {}
    for detail in error.errors(include_url=False):
        found.setdefault(".".join(_path(detail, kind)), []).append(detail)
    return [_sentence(key, details, kind, quote=quote, fix=fix) for key, details in found.items()]


def expected(kind: Any) -> str:  # noqa: ANN401 - any annotation
    """What values a type takes, in words.

    >>> expected(Literal["scene", "card"] | Annotated[float, FieldInfo(gt=0, lt=1)])
    '`scene`, `card` or a number above 0 and below 1'
    >>> expected(Annotated[int | None, FieldInfo(ge=1)])
    'a whole number of at least 1'
    """
    return " or ".join(dict.fromkeys(_words(plain, bounds) for plain, bounds in _members(kind)))


def _sentence(key: str, details: Sequence[Any], kind: Any, *, quote: bool, fix: Callable[[str], str]) -> str:  # noqa: ANN401
    detail, named = details[0], f"`{key}`: " if key else ""
    if detail["type"] == "missing":
        return f"`{key}` is missing{fix(key)}"
    if detail["type"] == "extra_forbidden":
        return f"unknown key `{key}`; expected one of: {', '.join(_keys(_at(kind, detail['loc'][:-1])))}"
    if detail["type"] == "json_invalid":
        return "it is not JSON: cut short, or damaged"
    got = detail["input"]
    if detail["type"] == "value_error":
        text = str(detail["ctx"]["error"])
        shown = quote and key and "got " not in text and not isinstance(got, Mapping | BaseModel)
        return f"{named}{text}" + (f" (got {_shown(got)})" if shown else "")
    wanted = f"expected {expected(_at(kind, detail['loc']))}"
    if detail["type"] == "finite_number":
        wanted = f"{wanted}, and finite"
    return f"{named}got {_shown(got)}; {wanted}" if quote else f"{named}{wanted}"


def _shown(value: object) -> str:
    return "keys and values" if isinstance(value, Mapping) else f"{value!r:.{SHOWN_CHARACTERS}}"


def _path(detail: Any, kind: Any) -> Iterator[str]:  # noqa: ANN401 - pydantic's ErrorDetails, any annotation
    """The keys that lead to what does not fit, without pydantic's labels for the members of a union."""
    for place, part in enumerate(detail["loc"]):
        inner = _inner(kind, part)
        last = place == len(detail["loc"]) - 1
        if inner is not None or (last and detail["type"] in ("missing", "extra_forbidden")):
            yield str(part)
        kind = kind if inner is None else inner


def _at(kind: Any, loc: Iterable[int | str]) -> Any:  # noqa: ANN401 - any annotation
    for part in loc:
        inner = _inner(kind, part)
        kind = kind if inner is None else inner
    return kind


def _members(kind: Any, bounds: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:  # noqa: ANN401
    """The types that an annotation allows but None, each with its bounds: unions opened, wrappers taken off."""
    if get_origin(kind) is Annotated:
        inner, *notes = get_args(kind)
        told = (part for note in notes for part in ((*note.metadata, note) if isinstance(note, FieldInfo) else (note,)))
        yield from _members(inner, (*bounds, *told))
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _members(member, bounds)
    elif kind is not NoneType:
        yield kind, bounds


def _inner(kind: Any, part: int | str) -> Any:  # noqa: ANN401 - any annotation
    """The type of a key or place in a type; None where it has no such."""
    for plain, _ in _members(kind):
        origin, parts = get_origin(plain), get_args(plain)
        if isinstance(plain, type) and issubclass(plain, BaseModel):
            for name, field in plain.model_fields.items():
                if part in (name, field.alias):
                    return Annotated[field.annotation, field]
        elif dataclasses.is_dataclass(plain) and part in (hints := get_type_hints(plain, include_extras=True)):
            return hints[part]
        elif origin is tuple and isinstance(part, int):
            return parts[0] if parts[-1] is Ellipsis else parts[min(part, len(parts) - 1)]
        elif origin is list and isinstance(part, int):
            return parts[0]
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            return parts[1]
    return None


def _keys(kind: Any) -> list[str]:  # noqa: ANN401 - any annotation
    return [
        field.alias or name
        for plain, _ in _members(kind)
        if isinstance(plain, type) and issubclass(plain, BaseModel)
        for name, field in plain.model_fields.items()
    ]


def _words(plain: Any, bounds: tuple[Any, ...]) -> str:  # noqa: ANN401 - any annotation
    limits = {name: value for bound in bounds for name, value in _limits(bound)}
    if "description" in limits:
        return str(limits["description"])
    origin = get_origin(plain) or plain
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(plain))
    if origin in PLAIN:
        return PLAIN[origin] + _limited(limits, of_text=origin is str)
    if origin in (list, tuple):
        return "a list" + _counted(plain, limits)
    return "keys and values"


def _limits(bound: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - annotated_types' and pydantic's metadata
    for name in ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "description"):
        if (value := getattr(bound, name, None)) is not None:
            yield name, value


def _limited(limits: Mapping[str, Any], *, of_text: bool) -> str:
    if of_text:
        return f" of {limits['max_length']} characters at most" if "max_length" in limits else ""
    shown = {name: f"{value:g}" if isinstance(value, float) else f"{value}" for name, value in limits.items()}
    step = f", a multiple of {shown['multiple_of']}" if "multiple_of" in shown else ""
    if "ge" in shown and "le" in shown:
        return f" of {shown['ge']} to {shown['le']}{step}"
    words = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most"}
    told = " and ".join(f"{word} {shown[name]}" for name, word in words.items() if name in shown)
    return f" {told}{step}" if told else step


def _counted(plain: Any, limits: Mapping[str, Any]) -> str:  # noqa: ANN401 - any annotation
    parts = get_args(plain)
    if get_origin(plain) is tuple and Ellipsis not in parts:
        return f" of {len(parts)}"
    words = {"min_length": "at least", "max_length": "at most"}
    told = " and ".join(f"{word} {limits[name]}" for name, word in words.items() if name in limits)
    return f" of {told}" if told else ""
