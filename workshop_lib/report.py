"""The page of a run: what it found, beside what others published, and where its files are."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
import nbformat

from workshop_lib.findings import NOT_THERE, evaluate, find, statements
from workshop_lib.paths import NOTEBOOKS, replace_file
from workshop_lib.published import PublishedFigure, Study, studies
from workshop_lib.results import INTERACTIVE, Measurement, Result, read_run, write_text

TEMPLATES = Path(__file__).parent / "templates"
MAX_HEADLINES = 5
HEADLINE = "headline"
"""The tag of the cell that draws a notebook's most telling picture."""


def write_report(folder: Path) -> Path:
    """Write `index.html` over what a run left in a folder; a damaged file is a failed notebook.

    Returns:
        The page's path.

    Raises:
        ResultError: the page cannot be written.

    """
    results = read_run(folder)
    pictures = {name: _add_picture(folder / name, result) for name, result in results.items()}
    told = [s for s in statements() if s.notebook in results and results[s.notebook].ok]
    findings = [find(statement, results[statement.notebook]) for statement in told]
    services = dict.fromkeys(
        (kind, service.get("label"), service.get("version"), service.get("emulated"))
        for result in results.values()
        for kind, service in result.services.items()
    )
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    loader = jinja2.FileSystemLoader(TEMPLATES)
    language = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = language.get_template("report.html").render(
        results=results,
        pictures=pictures,
        pages={page.stem for page in folder.glob("*.html")},
        findings=findings,
        headlines=[finding for finding in findings if finding.headline][:MAX_HEADLINES],
        statements=statements(),
        services=list(services),
        beside=[(study, beside(study, results)) for study in studies().values()],
        style=style,
        style_hash=b64encode(sha256(style.encode()).digest()).decode(),
    )
    page = folder / "index.html"
    write_text(page, text)
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


def _add_picture(place: Path, result: Result) -> dict[str, str]:
    """Take title and picture from an executed notebook; the picture becomes a file as well.

    Returns:
        The picture as `png`, in base64, and as `alt` what it shows; nothing without one.

    """
    executed = place.with_suffix(".ipynb")
    if result.size == INTERACTIVE:  # it is where the learner runs and saves it
        executed = next(NOTEBOOKS.rglob(executed.name), executed)
    try:
        notebook = nbformat.read(executed, as_version=4)
        result.title = result.title or heading(notebook)
        if picture := _picture(notebook):
            place.with_suffix(".png").write_bytes(b64decode(picture["png"]))
    except FileNotFoundError:
        return {}
    except Exception as error:  # noqa: BLE001 -- whatever is in that file: the others have theirs
        why = f"its executed notebook cannot be shown: {type(error).__name__}: {error}"
        result.left_undone.append(why)
        return {}
    return picture


def _picture(executed: Any) -> dict[str, str]:
    """The picture of the cell with the tag "headline", or the first."""
    tagged = sorted(executed.cells, key=lambda c: HEADLINE not in c.metadata.get("tags", ()))
    for output in (output for cell in tagged for output in cell.get("outputs", ())):
        if "image/png" in output.get("data", {}):
            alt = output.metadata.get("image/png", {}).get("alt", "a plot")
            return {"png": "".join(output.data["image/png"].split()), "alt": alt}
    return {}


def beside(
    study: Study, results: Mapping[str, Result]
) -> list[tuple[PublishedFigure, Measurement | None]]:
    """Published figures, and those of a run that are like them; None where it has none."""
    rows: list[tuple[PublishedFigure, Measurement | None]] = []
    for published in study.figures:
        if published.notebook in results:
            ours = None
            with suppress(*NOT_THERE):
                ours = evaluate(published.like, results[published.notebook])
            rows.append((published, ours))
    return rows
