"""The page of a run: what was run, on what, the figures and the pictures, in one HTML file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jinja2

from workshop_lib.load.interrupts import out_of_hearing
from workshop_lib.measure import readable
from workshop_lib.notebook_format import nbformat
from workshop_lib.orphans import end_with
from workshop_lib.results import described, read_result, shown

TEMPLATES = Path(__file__).parent / "templates"
DETAILS = ("_p95", "_p99", "_mean", "_min", "_max")
"""Endings of figures that go below the fold: the p50 beside them tells the story."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot from a notebook: PNG in base64, and what it shows in words."""

    png: str
    alt: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One recorded figure as text."""

    name: str
    value: str
    interval: str
    samples: str


@dataclass(frozen=True, slots=True)
class Section:
    """What the page says about one notebook."""

    name: str
    result: dict[str, Any]
    figures: list[Figure]
    details: list[Figure]
    pictures: list[Picture]
    page: str
    distances: str


@contextmanager
def exporting() -> Iterator[Callable[[Path], object]]:
    """Export executed notebooks as HTML in a process that steps back behind whatever else runs.

    Gives what takes a notebook's path. What fails here is done, or fails, in `write_report`.
    """
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_step_back)
    try:
        with out_of_hearing():  # Ctrl-C is for who runs the notebooks
            pool.submit(_exporter)
        yield lambda executed: pool.submit(_export, executed)
    finally:
        pool.shutdown(wait=True)


def write_report(folder: Path) -> Path:
    """Export every executed notebook of a run as HTML and write `index.html` over them.

    Those that have been exported since they were executed are left as they are.

    Returns:
        The page's path.

    """
    sections = [_section(file) for file in sorted(folder.glob("[0-9][0-9]_*.json"))]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    first: dict[str, Any] = next((s.result for s in sections if s.result.get("services")), {})
    text = environment.get_template("report.html").render(
        sections=sections,
        passed=sum(bool(s.result["ok"]) for s in sections),
        seconds=sum(s.result["seconds"] for s in sections),
        size=sections[0].result["size"] if sections else "",
        first=first,
        services={kind: s for one in sections for kind, s in one.result["services"].items()},
        readable=readable,
    )
    page = folder / "index.html"
    page.write_text(text, encoding="utf-8")
    return page


def _section(file: Path) -> Section:
    result, executed = read_result(file), file.with_suffix(".ipynb")
    figures = [(name, _figure(name, m)) for name, m in result["measurements"].items()]
    return Section(
        name=file.stem,
        result=result,
        figures=[figure for name, figure in figures if not name.endswith(DETAILS)],
        details=[figure for name, figure in figures if name.endswith(DETAILS)],
        pictures=_pictures(executed) if executed.exists() else [],
        page=_exported(executed).name if executed.exists() else "",
        distances="; ".join(described(one) for one in result.get("distances", ())),
    )


def _figure(name: str, measured: dict[str, Any]) -> Figure:
    value, unit = measured["value"], measured["unit"]
    interval = ""
    if measured["low"] is not None:
        interval = f"{shown(measured['low'])} – {shown(measured['high'])} {unit}".strip()
    text = f"{shown(value)} {unit}".strip()
    return Figure(name.replace("_", " "), text, interval, f"{measured['n']:,}")


def _pictures(executed: Path) -> list[Picture]:
    notebook = nbformat.read(executed, as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.get("outputs", ())]
    return [
        Picture(
            "".join(output.data["image/png"].split()),
            output.metadata.get("image/png", {}).get("alt", "a plot"),
        )
        for output in outputs
        if "image/png" in output.get("data", {})
    ]


def _step_back() -> None:
    """Run when the processor has nothing better to do; end with the command."""
    os.nice(19)
    end_with(os.getppid())


def _exported(executed: Path) -> Path:
    """The notebook's page, made anew if it is older than the notebook."""
    page = executed.with_suffix(".html")
    if page.exists() and page.stat().st_mtime_ns > executed.stat().st_mtime_ns:
        return page
    return _export(executed)


def _exporter() -> Any:
    from nbconvert import HTMLExporter  # noqa: PLC0415 -- takes half a second, in few processes

    exporter = HTMLExporter(template_name="lab", template_file=str(TEMPLATES / "notebook.html.j2"))
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    return exporter


def _export(executed: Path) -> Path:
    """The notebook as a page that needs no network."""
    body, _ = _exporter().from_filename(str(executed), {"metadata": {"name": executed.stem}})
    page = executed.with_suffix(".html")
    draft = page.with_suffix(".html.new")
    draft.write_text(body, encoding="utf-8")
    draft.replace(page)  # whole or not at all: Ctrl-C can come at any time
    return page
