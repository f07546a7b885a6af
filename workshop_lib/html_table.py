"""Tables for notebooks' pages."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable


def html_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table whose cells stay text; what stands in back-ticks is code."""
    head = _row("th", header)
    return f"<table>{head}{''.join(_row('td', row) for row in rows)}</table>"


def _row(kind: str, cells: Iterable[object]) -> str:
    texts = (html.escape(str(cell)).replace("\n", "<br>") for cell in cells)
    marked = (re.sub(r"`([^`]+)`", r"<code>\1</code>", text) for text in texts)
    row = "".join(f"<{kind} style='text-align:left'>{text}</{kind}>" for text in marked)
    return f"<tr>{row}</tr>"
