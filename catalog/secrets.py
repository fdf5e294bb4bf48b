"""Secrets kept out of words: signed addresses, passwords and tokens are hidden in whatever others may read.

Errors of ours hide them when they are raised, those of others when they end a step (`catalog.apart.quiet`), the
configuration when it becomes JSON, a product before it is written, log lines when they are made (`guard_logs`), a flow
run's parameters before Prefect stores them (`flows.guarded`).

Whoever starts runs elsewhere names a secret: `${LANDSLIDENET_SECRET_...}` is a variable of the process that runs, and
stands for its value wherever that would be said.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

HIDDEN: Final = "***"
LEAST_CHARACTERS: Final = 8
"""Shorter values of a cluster's options are words, which every text holds."""

PLAIN_PARAMETERS: Final = frozenset(
    "bbox collection collections datetime endtime eventid fields format ids includedeleted latitude limit longitude "
    "maxlatitude maxlongitude maxradiuskm minlatitude minlongitude minmagnitude offset orderby page starttime "
    "updatedafter".split()
)
"""Of our own questions to catalogues; every other value in an address may be a signature."""

REFERENCE: Final = re.compile(r"\$\{(LANDSLIDENET_SECRET_[A-Z0-9_]+)\}")
"""How a secret is named in a configuration."""
_NAMES_ONE: Final = re.compile(r"(?:[\w.-]+:)?\$\{LANDSLIDENET_SECRET_[A-Z0-9_]+\}?")
"""A reference, perhaps after a user's name, perhaps cut off at its bracket."""
_LOGIN: Final = re.compile(r"(://)([^/\s@'\"<>]+)@")
_PARAMETER: Final = re.compile(r"([?&;#]([\w.~%-]+)=)([^&;#\s'\"<>)\]},]+?)(?=[:.]?(?:[&;#\s'\"<>)\]},]|$))")
_SECRET_NAME: Final = (
    r"[\w-]*(?:secret|token|passw(?:or)?d|api[_-]?key|access[_-]?key|account[_-]?key|credential|authorization|signature)"
    r"[\w-]*"
)
_NAMED: Final = re.compile(
    rf"(\b{_SECRET_NAME}['\"]?\s*=\s*['\"]?|(?<!/)\b{_SECRET_NAME}['\"]?\s*:\s*['\"]?)([^\s'\",;&}}\])]+)",
    re.IGNORECASE,
)
"""`token=...`, and `token: ...` but of a path (`/etc/passwd: cannot be read`)."""
_SCHEME: Final = re.compile(r"\b(Basic|Bearer)(\s+)[\w.~+/=-]{8,}")
_IS_SECRET: Final = re.compile(_SECRET_NAME, re.IGNORECASE)
_known: dict[str, str] = {}
"""What stands for each secret where it would be said."""


def remember(values: object, *, shown: str = HIDDEN) -> None:
    """Have the texts in a value of any depth hidden from now on, wherever they stand: `shown` stands there."""
    if isinstance(values, Mapping):
        for value in values.values():
            remember(value, shown=shown)
    elif isinstance(values, str):
        for text in (values, quote(values, safe="")) if len(values) >= LEAST_CHARACTERS else ():
            _known.setdefault(text, shown)
    elif isinstance(values, Iterable):
        for value in values:
            remember(value, shown=shown)


def redact(text: str) -> str:
    """The text with secrets hidden.

    >>> redact("https://me:word@host/post.tif?sig=abc&limit=5: cannot be read")
    'https://***@host/post.tif?sig=***&limit=5: cannot be read'
    >>> redact("https://me:${LANDSLIDENET_SECRET_KEY}@host/post.tif?sig=${LANDSLIDENET_SECRET_SIG}")
    'https://me:${LANDSLIDENET_SECRET_KEY}@host/post.tif?sig=${LANDSLIDENET_SECRET_SIG}'
    >>> redact("/etc/passwd: cannot be read; password: word")
    '/etc/passwd: cannot be read; password: ***'
    """
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, _known[secret])
    text = _LOGIN.sub(lambda m: m[1] + _hide(m[2]) + "@", text)
    text = _PARAMETER.sub(lambda m: m[0] if m[2].lower() in PLAIN_PARAMETERS else m[1] + _hide(m[3]), text)
    text = _SCHEME.sub(rf"\1\2{HIDDEN}", text)
    return _NAMED.sub(lambda m: m[1] + _hide(m[2]), text)


def _hide(value: str) -> str:
    """What stands for a value that a secret's place holds: the secret's name, where it is named."""
    return value if _NAMES_ONE.fullmatch(value) else HIDDEN


def hidden(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """The same value with secrets hidden in its texts, and behind keys that are called so.

    >>> hidden({"post": ["s3://a/b.tif"], "auth_token": "abc"})
    {'post': ['s3://a/b.tif'], 'auth_token': '***'}
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            key: _hide(inner) if isinstance(inner, str) and _IS_SECRET.fullmatch(str(key)) else hidden(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(hidden(inner) for inner in value)
    return value


def guard_logs() -> None:
    """Hide secrets in every log line of this process from now on, also in tracebacks."""
    make = logging.getLogRecordFactory()
    if getattr(make, "hides_secrets", False):
        return

    def made(*args: Any, **kwargs: Any) -> logging.LogRecord:  # noqa: ANN401 - logging's
        record = make(*args, **kwargs)
        plain = record.getMessage()
        if (shown := redact(plain)) != plain:
            record.msg, record.args = shown, ()
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    made.hides_secrets = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(made)
