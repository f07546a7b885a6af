"""A notebook taken apart by its headings: what everybody runs, and what may be left out."""

from __future__ import annotations

import re
import symtable
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


@dataclass(slots=True)
class Section:
    """From one heading to the next.

    Attributes:
        heading: its text.
        optional: whether it, or the heading that it belongs to, ends in "(optional)".
        code: the sources of its code cells.
        folded: those of them that JupyterLab and VS Code show as a bar that opens at a click.

    """

    heading: str
    optional: bool
    code: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)


def sections(notebook: Any) -> Iterator[Section]:
    """The sections of a notebook, in their order."""
    current = Section("", optional=False)
    optional_level = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            current.code.append(cell.source)
            if cell.metadata.get("jupyter", {}).get("source_hidden"):
                current.folded.append(cell.source)
            continue
        for marks, heading in HEADING.findall(cell.source):
            yield current
            if optional_level and len(marks) <= optional_level:
                optional_level = 0
            if heading.endswith("(optional)") and not optional_level:
                optional_level = len(marks)
            current = Section(heading, bool(optional_level))
    yield current


def names_bound(code: list[str]) -> set[str]:
    """The names that these cells give a value to, for cells after them."""
    return {name.get_name() for name in _names_in(code) if name.is_assigned() or name.is_imported()}


def names_used(code: list[str]) -> set[str]:
    """The names of the notebook that these cells, and the functions in them, read."""
    return {name.get_name() for name in _names_in(code) if name.is_referenced()}


def _names_in(code: list[str]) -> Iterator[symtable.Symbol]:
    """Those of the notebook itself, wherever they stand; not those of a function's own."""
    tables = [symtable.symtable("\n".join(code), "cells", "exec")]
    for table in tables:
        tables += table.get_children()
        yield from (s for s in table.get_symbols() if s.is_global() or table is tables[0])
