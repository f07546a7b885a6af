"""The page of a run: what it found, beside what others published, and where its files are."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
import nbformat

from workshop_lib.errors import ResultError
from workshop_lib.findings import NOT_THERE, Finding, evaluate, find, statements
from workshop_lib.paths import NOTEBOOKS, replace_file
from workshop_lib.published import PublishedFigure, Study, studies
from workshop_lib.results import INTERACTIVE, Measurement, Result, format_latency, read_run

TEMPLATES = Path(__file__).parent / "templates"
MAX_HEADLINES = 5
HEADLINE = "headline"
"""The tag of the cell that draws a notebook's most telling picture."""


@dataclass(frozen=True, slots=True)
class Section:
    """What the page says about one notebook.

    Attributes:
        result: as its file holds it.
        title: its heading.
        page: whether it was exported as a page.
        picture: its most telling plot, which is a file of its own as well: PNG in base64.
        alt: what the picture shows, in words.
        problem: why its executed notebook cannot be shown; empty if it can, or there is none.

    """

    result: Result
    title: str
    page: bool
    picture: str = ""
    alt: str = ""
    problem: str = ""


def write_report(folder: Path) -> Path:
    """Write `index.html` over what a run left in a folder; a damaged file is a failed notebook.

    Returns:
        The page's path.

    Raises:
        ResultError: the page cannot be written.

    """
    results = read_run(folder)
    passed = [one for one in statements() if one.notebook in results]
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
        sources=sorted((s.notebook[:2], s.headline == "full") for s in statements() if s.headline),
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


def heading(notebook: Any) -> str:
    """A notebook's title; empty if it has none."""
    texts = (cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = next((text for text in texts if text.startswith("# ")), "# ")
    return str(found.splitlines()[0][2:])


def _section(place: Path, result: Result) -> Section:
    executed, page = place.with_suffix(".ipynb"), place.with_suffix(".html").exists()
    if result.size == INTERACTIVE:  # it is where the learner runs and saves it
        executed = next(NOTEBOOKS.rglob(executed.name), executed)
    title, picture, alt, problem = result.title or place.name, "", "", ""
    try:
        if executed.exists():
            notebook = nbformat.read(executed, as_version=4)
            title = result.title or heading(notebook) or place.name
            picture, alt = _picture(notebook)
            if picture:
                place.with_suffix(".png").write_bytes(b64decode(picture))
    except Exception as error:  # noqa: BLE001 -- whatever is in that file: the others have theirs
        problem = f"{type(error).__name__}: {error}"
    return Section(result, title, page, picture, alt, problem)


def _picture(executed: Any) -> tuple[str, str]:
    """The picture of the cell with the tag "headline", or the first, and what it shows."""
    drawn = [
        (HEADLINE in cell.metadata.get("tags", ()), output)
        for cell in executed.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    if not drawn:
        return "", ""
    _, output = max(drawn, key=lambda one: one[0])
    png = "".join(output.data["image/png"].split())
    return png, output.metadata.get("image/png", {}).get("alt", "a plot")


def _is_headline(found: Finding, results: Mapping[str, Result]) -> bool:
    """Whether its figure has an interval, and can be trusted at the size of its run."""
    quick = results[found.statement.notebook].size == "quick"
    known = found.figure and found.figure.interval
    return bool(known) and found.statement.headline in ({"quick"} if quick else {"quick", "full"})


def beside(
    study: Study, results: Mapping[str, Result]
) -> list[tuple[PublishedFigure, Measurement | None]]:
    """Published figures, and those of a run that are like them; None where it has none."""
    rows = []
    for published in study.figures:
        if published.notebook in results:
            ours = None
            with suppress(*NOT_THERE):
                figure = evaluate(published.like, results[published.notebook])
                ours = figure if figure.number > 0 else None
            rows.append((published, ours))
    return rows


def _services(results: Iterable[Result]) -> list[tuple[str, dict[str, Any]]]:
    """Each service once, with what it was called: a folder may hold several runs."""
    found = {
        (kind, service.get("label"), service.get("version")): service
        for result in results
        for kind, service in result.services.items()
    }
    return [(kind, service) for (kind, *_), service in found.items()]
