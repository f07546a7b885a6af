"""The page of a run: what it found, on what, beside what others published, in one HTML file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2

from workshop_lib.errors import ResultError
from workshop_lib.findings import Finding, between, find, main_figures, statements
from workshop_lib.notebook_format import nbformat
from workshop_lib.published import Beside, beside_published, published_figures
from workshop_lib.results import described, read_result, said, unreadable_result

TEMPLATES = Path(__file__).parent / "templates"
DETAILS = {
    "_p50": "median", "_p95": "p95", "_p99": "p99",
    "_mean": "mean", "_min": "smallest", "_max": "largest",
}  # fmt: skip
"""What the endings of recorded names mean."""
ENOUGH = 3
"""With fewer statements for the first screen, it shows all that the run allows."""


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
    """What the page says about one notebook.

    Attributes:
        name: of its files, without ending.
        result: as its file holds it.
        findings: sentences about it.
        figures, pictures: what matters most; at most one picture.
        more_figures, more_pictures: what lies below the fold.
        page: its executed page; empty if there is none.
        latencies: those that were emulated.

    """

    name: str
    result: dict[str, Any]
    findings: list[Finding]
    figures: list[Figure]
    pictures: list[Picture]
    more_figures: list[Figure]
    more_pictures: list[Picture]
    page: str
    latencies: str


@dataclass(frozen=True, slots=True)
class Study:
    """The figures of one published document beside those of the run."""

    source: str
    rows: list[Beside]

    @property
    def reasons(self) -> list[str]:
        """Why they differ, at length, each once."""
        return list(dict.fromkeys(long for row in self.rows for _, long in row.reasons if long))


def write_report(folder: Path) -> Path:
    """Export every executed notebook of a run as HTML and write `index.html` over them.

    Those that have been exported since they were executed are left as they are.

    Returns:
        The page's path.

    Raises:
        ResultError: the page cannot be written.

    """
    sections = [_section(file) for file in sorted(folder.glob("[0-9][0-9]_*.json"))]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    results = {section.name: section.result for section in sections}
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    text = environment.get_template("report.html").render(
        sections=sections,
        results=results,
        summary=_summary(results),
        studies=_studies(results),
        services=_services(results.values()),
        interval=between,
        value=lambda figure: said(figure["value"], figure["unit"]),
        style=style,
        style_hash=b64encode(sha256(style.encode()).digest()).decode(),
    )
    page = folder / "index.html"
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResultError(f"The page {page} cannot be written: {error}.") from None
    return page


def _summary(results: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """What the first screen says, and what it cannot say and why."""
    found = [(one, find(one, results.get(one.notebook))) for one in statements()]
    first = [finding for one, finding in found if one.first_screen]
    if sum(not finding.missing for finding in first) < ENOUGH:
        first += [finding for one, finding in found if not (one.first_screen or finding.missing)]
    return first


def _studies(results: Mapping[str, dict[str, Any]]) -> list[Study]:
    """What of the run has a published figure beside it, by document."""
    studies: dict[str, list[Beside]] = {}
    for row in beside_published(results):
        studies.setdefault(row.study, []).append(row)
    return [
        Study(published_figures(study)[0].source, rows)
        for study, rows in studies.items()
        if any(row.figure for row in rows)
    ]


def _services(results: Iterable[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Each service once, with what it was called: a folder may hold several runs."""
    found = {
        (kind, service["label"], service["version"]): service
        for result in results
        for kind, service in result["services"].items()
    }
    return [(kind, service) for (kind, *_), service in found.items()]


def _section(file: Path) -> Section:
    executed = file.with_suffix(".ipynb")
    try:
        result = read_result(file)
    except ResultError as error:
        result = unreadable_result(file, error)
    main = main_figures().get(file.stem)
    measured = result["measurements"]
    page, pictures = _shown(executed)
    if main is None:  # a notebook of one's own: medians, and its first picture
        names = {n: _in_words(n) for n in measured if not n.endswith(tuple(DETAILS)[1:])}
        telling = pictures[:1]
    else:
        names = {name: words for name, words in main.figures.items() if name in measured}
        telling = [one for one in pictures if main.picture in one.alt][:1] or pictures[:1]
    more = {name: _in_words(name) for name in measured if name not in names}
    return Section(
        name=file.stem,
        result=result,
        findings=[find(one, result) for one in statements() if one.notebook == file.stem],
        figures=[_figure(words, measured[name]) for name, words in names.items()],
        pictures=telling,
        more_figures=[_figure(words, measured[name]) for name, words in more.items()],
        more_pictures=[one for one in pictures if one not in telling],
        page=page,
        latencies="; ".join(described(one) for one in result["latencies"]),
    )


def _shown(executed: Path) -> tuple[str, list[Picture]]:
    """The name of the notebook's page, and its pictures; nothing if it cannot be read."""
    if not executed.exists():
        return "", []
    try:
        return _exported(executed).name, _pictures(executed)
    except Exception:  # noqa: BLE001 -- whatever is in that file: the others have their pages
        return "", []


def _in_words(name: str) -> str:
    """A recorded name as a person reads it.

    >>> _in_words("report_cache_p50"), _in_words("rows_left")
    ('report cache, median', 'rows left')
    """
    for ending, words in DETAILS.items():
        if name.endswith(ending):
            return f"{name.removesuffix(ending).replace('_', ' ')}, {words}"
    return name.replace("_", " ")


def _figure(words: str, measured: dict[str, Any]) -> Figure:
    interval = "" if measured["low"] is None else between(measured)
    value = said(measured["value"], measured["unit"])
    return Figure(words, value, interval, f"{measured['n']:,}")


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
