"""The page of a run: what it found, beside what others published, and where its files are."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2

from workshop_lib.errors import ResultError
from workshop_lib.findings import NOT_THERE, Finding, content, evaluate, find
from workshop_lib.notebook_format import nbformat
from workshop_lib.paths import replace_file
from workshop_lib.published import PublishedFigure, Study, studies
from workshop_lib.results import Measurement, Result, format_latency, read_run

TEMPLATES = Path(__file__).parent / "templates"
MAX_HEADLINES = 5
HEADLINE = "headline"
"""The tag of the cell that draws a notebook's most telling picture."""


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
        result: as its file holds it.
        page: whether it was exported as a page.
        picture: if it drew one.
        problem: why its executed notebook cannot be shown; empty if it can, or there is none.

    """

    result: Result
    page: bool
    picture: Picture | None = None
    problem: str = ""


def write_report(folder: Path) -> Path:
    """Write `index.html` over what a run left in a folder; a damaged file is a failed notebook.

    Returns:
        The page's path.

    Raises:
        ResultError: the page cannot be written.

    """
    results = read_run(folder)
    passed = [one for one in content().statement if one.notebook in results]
    findings = [find(one, results[one.notebook]) for one in passed if results[one.notebook].ok]
    sections = {name: _section(folder / name, result) for name, result in results.items()}
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    loader = jinja2.FileSystemLoader(TEMPLATES)
    language = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    language.filters["latency"] = format_latency
    text = language.get_template("report.html").render(
        sections=sections,
        results=results,
        findings=findings,
        headlines=[f for f in findings if _is_headline(f, results)][:MAX_HEADLINES],
        services=_services(results.values()),
        studies=studies(),
        beside={name: beside(study, results) for name, study in studies().items()},
        style=style,
        style_hash=b64encode(sha256(style.encode()).digest()).decode(),
    )
    page = folder / "index.html"
    try:
        replace_file(page, text)
    except OSError as error:
        raise ResultError(f"The page {page} cannot be written: {error}.") from None
    return page


def export(executed: Path) -> None:
    """An executed notebook as a page beside it that needs no network."""
    from nbconvert import HTMLExporter  # noqa: PLC0415 -- takes half a second

    exporter = HTMLExporter(template_name="lab", template_file=str(TEMPLATES / "notebook.html.j2"))
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    body, _ = exporter.from_filename(str(executed), {"metadata": {"name": executed.stem}})
    replace_file(executed.with_suffix(".html"), body)


def _section(place: Path, result: Result) -> Section:
    executed, picture, problem = place.with_suffix(".ipynb"), None, ""
    try:
        picture = _picture(executed) if executed.exists() else None
    except Exception as error:  # noqa: BLE001 -- whatever is in that file: the others have theirs
        problem = f"{type(error).__name__}: {error}"
    return Section(result, place.with_suffix(".html").exists(), picture, problem)


def _picture(executed: Path) -> Picture | None:
    """The picture of the cell with the tag "headline", or the first; also as a file of its own."""
    drawn = [
        (output.metadata.get("image/png", {}).get("alt", "a plot"), output.data["image/png"], cell)
        for cell in nbformat.read(executed, as_version=4).cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    if not drawn:
        return None
    alt, png, _ = max(drawn, key=lambda one: HEADLINE in one[2].metadata.get("tags", ()))
    file = executed.with_suffix(".png")
    file.write_bytes(b64decode(png))
    return Picture("".join(png.split()), alt, file.name)


def _is_headline(found: Finding, results: Mapping[str, Result]) -> bool:
    """Whether its figure has an interval, and can be trusted at the size of its run."""
    sizes = {"quick", results[found.statement.notebook].size}
    return bool(found.figure and found.figure.interval) and found.statement.headline in sizes


def beside(
    study: Study, results: Mapping[str, Result]
) -> list[tuple[PublishedFigure, Measurement | None]]:
    """Published figures, and those of a run that are like them; None where it has none."""
    return [(o, _like(o, results[o.notebook])) for o in study.figures if o.notebook in results]


def _like(published: PublishedFigure, result: Result) -> Measurement | None:
    try:
        figure = evaluate(published.like, result)
        return figure if figure.number > 0 else None
    except NOT_THERE:
        return None


def _services(results: Iterable[Result]) -> list[tuple[str, dict[str, Any]]]:
    """Each service once, with what it was called: a folder may hold several runs."""
    found = {
        (kind, service.get("label"), service.get("version")): service
        for result in results
        for kind, service in result.services.items()
    }
    return [(kind, service) for (kind, *_), service in found.items()]
