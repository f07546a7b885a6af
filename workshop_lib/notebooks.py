"""Notebooks on disk: found, chosen by name, with values for their parameters."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import nbformat

from workshop_lib.errors import RunError, redact
from workshop_lib.paths import NOTEBOOKS, display_path
from workshop_lib.report import heading

MORE = "more"
"""The folder, below the notebooks, of those beyond the course."""
ORIGINAL = re.compile(r"\d\d_\w+")
"""The names of notebooks, but not of copies, such as JupyterLab's 02_cache_a_query-Copy1."""
KINDS = {bool, int, float, str}
"""What a parameter may be that a command sets, or a list of."""


@dataclass(frozen=True, slots=True)
class Notebook:
    """A notebook as found on disk, with what its metadata says below `workshop`.

    Attributes:
        title: its first heading.
        parameters: the literals of its parameters cell that are of KINDS, or lists of them, by
            name.
        minutes: how long a learner takes, optional parts apart.
        quick: the values that make a quick run of it.
        ranges: of parameters, `min` and `max`; of lists, those of each value, and `different`, how
            many different ones are needed.
        seconds: roughly how long a quick run of it takes.
        measures_load: whether notebooks that run at the same time would spoil what it shows.
        broken: why its file cannot be read as a notebook; empty if it can.

    """

    path: Path
    title: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    minutes: int = 0
    quick: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, dict[str, int | float]] = field(default_factory=dict)
    seconds: float = 0.0
    measures_load: bool = False
    broken: str = ""

    @property
    def name(self) -> str:
        """Its file's name without the ending."""
        return self.path.stem

    @property
    def number(self) -> str:
        """Its short name: "06", or "more/06" beyond the course."""
        return f"{MORE}/{self.name[:2]}" if self.path.parent.name == MORE else self.name[:2]


def find_notebooks(folder: Path = NOTEBOOKS) -> list[Notebook]:
    """All numbered notebooks, in order: those of the course, then those beyond it."""
    folders = (folder, folder / MORE)
    return [_read(path) for one in folders for path in sorted(one.glob("[0-9][0-9]_*.ipynb"))]


def _read(path: Path) -> Notebook:
    try:
        content = nbformat.read(path, as_version=4)
        tagged = (c.source for c in content.cells if "parameters" in c.metadata.get("tags", ()))
        known = {"path": path, "title": heading(content), "parameters": _literals(next(tagged, ""))}
        return msgspec.convert({**content.metadata.get("workshop", {}), **known}, Notebook)
    except Exception as error:  # noqa: BLE001 -- whatever is in that file: the others can run
        why = (
            f"{display_path(path)} is not a notebook that can be read: {redact(error)[:200]}. If a "
            "merge left its marks in it, resolve the conflict; `workshop notebook reset` puts the "
            "delivered one back."
        )
        return Notebook(path, broken=why)


def _literals(source: str) -> dict[str, Any]:
    """What a parameters cell assigns, by name: literals of KINDS, and lists of them."""
    found = {}
    with suppress(SyntaxError):  # the notebook will say so when it runs
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                with suppress(ValueError):
                    value = ast.literal_eval(statement.value)
                    if {*map(type, value if isinstance(value, list) else [value])} <= KINDS:
                        found[statement.targets[0].id] = value
    return found


def choose(names: Iterable[str], found: list[Notebook]) -> list[Notebook]:
    """The notebooks that these names mean: a number ("02", "more/06"), a name, or a file's path.

    Without names, all. Copies are meant by their whole name only.

    Raises:
        RunError: there are none, or a name means none of them; the text lists those that exist.

    """
    if not found:
        raise RunError("There are no notebooks here. `workshop lab` copies them, and opens them.")
    wanted = list(names) or [one.number for one in found]
    for name in wanted:
        if not any(_means(name, one) for one in found):
            listed = "\n  ".join(f"{one.number}{one.name[2:]}" for one in found)
            raise RunError(f"There is no notebook {name!r}. There are:\n  {listed}")
    return [one for one in found if any(_means(name, one) for name in wanted)]


def _means(name: str, notebook: Notebook) -> bool:
    path = Path(name)
    if path.name.isdecimal():
        number = path.with_name(path.name.zfill(2)).as_posix()
        return number == notebook.number and ORIGINAL.fullmatch(notebook.name) is not None
    return path.name.removesuffix(".ipynb") == notebook.name


def parse_parameters(
    given: Iterable[str], chosen: list[Notebook], size: str = "full"
) -> dict[str, dict[str, Any]]:
    """The values of a run of this size; those that NAME=VALUE words give come first.

    Returns:
        By notebook name, the values that it does not have by itself, of its defaults' types.

    Raises:
        RunError: a word that is not NAME=VALUE, a name that no chosen notebook has (the text
            lists those they have), or a value of another type or outside its range.

    """
    values = {one.name: dict(one.quick) if size == "quick" else {} for one in chosen}
    for word in given:
        name, sign, text = word.partition("=")
        if not sign:
            raise RunError(f"{word!r} is not of the form NAME=VALUE.")
        takers = [notebook for notebook in chosen if name in notebook.parameters]
        if not takers:
            known = "\n  ".join(f"{n.name}: {', '.join(n.parameters)}" for n in chosen)
            raise RunError(f"No chosen notebook has a parameter {name!r}. They have:\n  {known}")
        for notebook in takers:
            default = notebook.parameters[name]
            try:
                value = text if isinstance(default, str) else msgspec.yaml.decode(text)
                values[notebook.name][name] = check_value(notebook, name, value)
            except ValueError as error:  # YAML's, and msgspec's as well
                raise RunError(
                    f"{word} is not possible: {redact(error)}. Its default is {default!r}."
                ) from None
    return values


def check_value(notebook: Notebook, name: str, value: Any) -> Any:
    """A value for a parameter, of its default's type and within its range.

    Raises:
        msgspec.ValidationError: it is not.

    """
    limits, default = notebook.ranges.get(name, {}), notebook.parameters[name]
    values = default if isinstance(default, list) else [default]
    kind = float if float in map(type, values) else type(next(iter(values), ""))
    bounds = msgspec.Meta(ge=limits.get("min"), le=limits.get("max"))
    one: Any = Annotated[kind, bounds] if kind in {int, float} else kind
    found = msgspec.convert(value, list[one] if values is default else one)
    if isinstance(found, list) and len(set(found)) < (least := limits.get("different", 1)):
        raise msgspec.ValidationError(f"Expected {least} or more different values")
    return found
