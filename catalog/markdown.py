"""Text of strangers within Markdown: titles, ids and messages that feeds and APIs sent."""

from __future__ import annotations

from typing import Final

from catalog.secrets import redact

MARKED: Final = {c: f"\\{c}" for c in "\\`*_{}[]()#|!~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def plain(text: str) -> str:
    """A text in one line, without a meaning in Markdown or HTML, secrets hidden.

    >>> plain("a <b> & c")
    'a &lt;b&gt; &amp; c'
    """
    return "".join(MARKED.get(c, c) for c in " ".join(redact(text).split()))
