"""The page of a run: what was run, on what, the figures and the pictures, in one HTML file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from nbconvert import HTMLExporter

from workshop_lib.measure import readable
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


def write_report(folder: Path) -> Path:
    """Export every executed notebook of a run as HTML and write `index.html` over them.

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
        page=_export(executed).name if executed.exists() else "",
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


def _export(executed: Path) -> Path:
    """The notebook as a page that needs no network."""
    exporter = HTMLExporter(template_name="lab", template_file=str(TEMPLATES / "notebook.html.j2"))
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    body, _ = exporter.from_filename(str(executed), {"metadata": {"name": executed.stem}})
    page = executed.with_suffix(".html")
    page.write_text(body, encoding="utf-8")
    return page
