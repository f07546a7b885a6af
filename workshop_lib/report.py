"""The page of a run: what it found, beside what others published, and where its files are."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2

from workshop_lib import published
from workshop_lib.errors import ResultError
from workshop_lib.findings import Finding, find, pictures, statements
from workshop_lib.notebook_format import nbformat
from workshop_lib.results import Result, format_latency, read_run

TEMPLATES = Path(__file__).parent / "templates"
MAX_HEADLINES = 5


@dataclass(frozen=True, slots=True)
class Picture:
    """A notebook's most telling plot: PNG in base64, what it shows in words, a file of its own."""

    png: str
    alt: str
    file: str


@dataclass(frozen=True, slots=True)
class Section:
    """What the page says about one notebook.

    Attributes:
        name: of its files, without ending.
        result: as its file holds it.
        findings: sentences about it.
        picture: if it drew one.
        page: its executed page; empty if there is none.

    """

    name: str
    result: Result
    findings: list[Finding]
    picture: Picture | None
    page: str


def write_report(folder: Path) -> Path:
    """Export every executed notebook of a run as HTML and write `index.html` over them.

    Those that have been exported since they were executed are left as they are. A file that is
    damaged is a notebook that failed.

    Returns:
        The page's path.

    Raises:
        ResultError: the page cannot be written.

    """
    results = read_run(folder)
    sections = {name: _section(folder / name, result) for name, result in results.items()}
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    text = _template().render(
        sections=sections,
        results=results,
        seconds=_seconds_by_the_clock(results.values()),
        headlines=headlines(results),
        services=_services(results.values()),
        studies=published.studies(),
        source=lambda study: published.published_figures(study)[0].source,
        beside=[row for row in published.beside_published(results) if row.notebook in results],
        style=style,
        style_hash=b64encode(sha256(style.encode()).digest()).decode(),
    )
    page = folder / "index.html"
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultError(f"The page {page} cannot be written: {error}.") from None
    return page


def headlines(results: Mapping[str, Result]) -> list[Finding]:
    """What stands at the top: the first sentences whose figures can be trusted at their size."""
    found = [find(statement, results.get(statement.notebook)) for statement in statements()]
    sizes = {name: {"quick", result.size} for name, result in results.items()}
    return [
        one
        for one in found
        if one.interval and one.statement.headline in sizes[one.statement.notebook]
    ][:MAX_HEADLINES]


def export(executed: Path) -> Path:
    """An executed notebook as a page that needs no network; made anew if the notebook is newer."""
    from nbconvert import HTMLExporter  # noqa: PLC0415 -- takes half a second

    page = executed.with_suffix(".html")
    if page.exists() and page.stat().st_mtime_ns > executed.stat().st_mtime_ns:
        return page
    exporter = HTMLExporter(template_name="lab", template_file=str(TEMPLATES / "notebook.html.j2"))
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    body, _ = exporter.from_filename(str(executed), {"metadata": {"name": executed.stem}})
    draft = page.with_suffix(".html.new")
    draft.write_text(body, encoding="utf-8")
    return draft.replace(page)  # whole or not at all: Ctrl-C can come at any time


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["latency"] = format_latency
    return environment.get_template("report.html")


def _section(place: Path, result: Result) -> Section:
    findings = [find(one, result) for one in statements() if one.notebook == place.name]
    picture, page = None, ""
    try:
        page = export(place.with_suffix(".ipynb")).name
        picture = _picture(place)
    except Exception:  # noqa: BLE001, S110 -- whatever is in that file: the others have theirs
        pass
    return Section(place.name, result, findings, picture, page)


def _picture(place: Path) -> Picture | None:
    """The notebook's most telling picture, or its first, also as a file to be opened alone."""
    notebook = nbformat.read(place.with_suffix(".ipynb"), as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    drawn = {
        output.metadata.get("image/png", {}).get("alt", "a plot"): output.data["image/png"]
        for output in reversed(outputs)
        if "image/png" in output.get("data", {})
    }
    telling = [alt for alt in drawn if pictures().get(place.name, "") in alt]
    if not drawn:
        return None
    alt = [*drawn, *telling][-1]
    file = place.with_suffix(".png")
    file.write_bytes(b64decode(drawn[alt]))
    return Picture("".join(drawn[alt].split()), alt, file.name)


def _seconds_by_the_clock(results: Iterable[Result]) -> float:
    """How long notebooks ran: what ran at the same time counts once."""
    total, until = 0.0, 0.0
    for began, seconds in sorted((_began(one), one.seconds) for one in results if one.started):
        end = began + seconds
        total += max(end - max(began, until), 0)
        until = max(until, end)
    return total


def _began(result: Result) -> float:
    return datetime.fromisoformat(result.started).replace(tzinfo=UTC).timestamp()


def _services(results: Iterable[Result]) -> list[tuple[str, dict[str, Any]]]:
    """Each service once, with what it was called: a folder may hold several runs."""
    found = {
        (kind, service.get("label"), service.get("version")): service
        for result in results
        for kind, service in result.services.items()
    }
    return [(kind, service) for (kind, *_), service in found.items()]
