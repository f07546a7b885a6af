"""Build the site: the course as executed, and the pages of docs/, for anybody with a link.

    make site                    from results/latest; `make run ARGS="--size full"` makes that
    make site ARGS=results/RUN   from another run

Pages go to build/site/html. Where GITHUB_REPOSITORY is set, as in the workflow, each page leads to
its source and to Binder, and links to files that have no page lead to the repository.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "site"
SOURCE = BUILD / "source"
REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")
ADDRESS = f"https://github.com/{REPOSITORY}"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""A Markdown link to another file: its text, its path, its fragment."""
TOC = """
```{toctree}
:hidden:
:caption: The course
:glob:
Map of the course <notebooks/README>
notebooks/[01]*
notebooks/more/*
```
```{toctree}
:hidden:
:caption: Reference
:glob:
docs/*
CHANGELOG
CONTRIBUTING
SECURITY
```
"""


def main(run: Path) -> int:
    """Build the pages of a run; 1 if Sphinx warns of anything, such as a broken link."""
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE / "docs")
    shutil.copytree(ROOT / "notebooks" / "take_home", SOURCE / "notebooks" / "take_home")
    for page in (*ROOT.glob("*.md"), ROOT / "notebooks" / "README.md"):
        shutil.copy(page, SOURCE / page.relative_to(ROOT))
    executed = {path.stem: path for path in run.glob("*.ipynb")}
    for notebook in (ROOT / "notebooks").rglob("[01]*.ipynb"):
        if notebook.stem not in executed:
            sys.exit(f'{run} has no {notebook.name}. `make run ARGS="--size full"` makes them all.')
        prepare(executed[notebook.stem], SOURCE / notebook.relative_to(ROOT))
    (SOURCE / "README.md").rename(SOURCE / "index.md")
    for page in SOURCE.rglob("*.md"):
        page.write_text(relink(page.read_text("utf-8"), page.parent), "utf-8")
    with (SOURCE / "index.md").open("a", encoding="utf-8") as index:
        index.write(TOC)
    from sphinx.application import Sphinx  # noqa: PLC0415 -- the tests do without it

    site = Sphinx(
        SOURCE, None, BUILD / "html", BUILD / "doctrees", "html", status=None,
        confoverrides=configuration(), warningiserror=True, parallel=os.cpu_count() or 1,
    )  # fmt: skip
    site.build()
    print(f"The site: {(BUILD / 'html' / 'index.html').relative_to(ROOT)}")
    return int(site.statuscode)


def prepare(executed: Path, target: Path) -> None:
    """An executed notebook as myst-nb reads it: alt texts and collapsed code in its own words."""
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = relink(cell.source, target.parent)
            continue
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata.setdefault("tags", []).append("hide-input")
        for output in cell.outputs:
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell.metadata["mystnb"] = {"image": {"alt": alt}}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def relink(text: str, folder: Path) -> str:
    """Lead links to files without a page to the repository, or take them away if none is known."""

    def link(found: re.Match[str]) -> str:
        words, path, fragment = found.groups()
        target = Path(os.path.normpath(folder / path))
        place = ROOT / target.relative_to(SOURCE)
        if place == ROOT / "README.md":
            return f"[{words}]({os.path.relpath(SOURCE / 'index.md', folder)}{fragment or ''})"
        file = place.relative_to(ROOT)
        page = len(file.parts) == 1 and file.suffix == ".md"
        if place.is_file() and (page or file.parts[0] in {"docs", "notebooks"}):
            return found[0]
        return f"[{words}]({ADDRESS}/blob/main/{file})" if REPOSITORY else words

    return LINK.sub(link, text)


def configuration() -> dict[str, Any]:
    """What Sphinx is to know."""
    theme: dict[str, Any] = {"home_page_in_toc": True, "use_download_button": False}
    if REPOSITORY:
        theme |= {
            "repository_url": ADDRESS,
            "repository_branch": "main",
            "use_repository_button": True,
            "use_edit_page_button": True,
            "launch_buttons": {
                "binderhub_url": "https://mybinder.org",
                "notebook_interface": "jupyterlab",
            },
        }
    return {
        "project": "Cache-aside workshop",
        "html_title": "Cache-aside workshop",
        "extensions": ["myst_nb", "sphinxcontrib.mermaid"],
        "myst_fence_as_directive": ["mermaid"],
        "html_theme": "sphinx_book_theme",
        "html_theme_options": theme,
        "nb_execution_mode": "off",
        "suppress_warnings": ["misc.highlighting_failure"],  # CSV is shown as it is
        "myst_heading_anchors": 4,
        "myst_enable_extensions": ["dollarmath"],
        "html_show_copyright": False,
    }


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "results/latest").resolve()))
