"""Build the site: the executed notebooks of the course, and the pages of docs/.

    make site                    from results/latest; `make run ARGS="--size full"` makes that
    make site ARGS=results/RUN   from another run

Pages go to build/site/html. If GITHUB_REPOSITORY is set, as in the workflow, each page links to its
source and to Binder, and links to files that have no page lead to the repository. Notebooks that
need no engine also run in the reader's browser, by JupyterLite in build/site/html/lite.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "site"
SOURCE = BUILD / "source"
REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")
ADDRESS = f"https://github.com/{REPOSITORY}"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
"""A Markdown link to another file: its text, its path, its fragment."""
PAPER = ("15_count_the_cost", "more/06_eviction_on_paper")
"""Notebooks that run in a browser: nearly all of their cells need no engine."""
PURE = {"costs", "exercise", "load_prices", "measure", "plots", "price_list", "simulate"}
PURE |= {"with_progress"}
"""Names of the package that need only the packages of `BROWSER`."""
BROWSER = ("ipywidgets", "lazy-loader", "matplotlib", "msgspec", "pandas", "tqdm")
IMPORT = re.compile(r"^from workshop_lib import (.+)$", re.MULTILINE)
IN_BROWSER = """\
*This copy runs in your browser. What needs the engines is left out; the workshop has all of it.*"""
INSTALL = f"""\
# Tens of megabytes, which your browser keeps. Then run cell by cell, or Run > Run All Cells.
%pip install -q --no-deps cache-aside-workshop
%pip install -q {" ".join(BROWSER)}
import tqdm

tqdm.tqdm.monitor_interval = 0  # a browser has no threads"""
LITE = """\
{"jupyter-lite-schema-version": 0, "jupyter-config-data": {"appUrl": "./tree"}}"""
RUN_HERE = """\
<a class="btn btn-primary" href="{}/notebooks/index.html?path={}">Run it in your browser</a>"""
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
    """Build the pages of a run; 1 if Sphinx warns of anything, such as a broken link.

    Raises:
        SystemExit: a notebook is missing.

    """
    notebooks = list((ROOT / "notebooks").rglob("[01]*.ipynb"))
    for notebook in notebooks:
        if not (run / notebook.name).is_file():
            sys.exit(f'{run} has no {notebook.name}. `make run ARGS="--size full"` makes them all.')
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE / "docs")
    shutil.copytree(ROOT / "notebooks" / "take_home", SOURCE / "notebooks" / "take_home")
    for page in (*ROOT.glob("*.md"), ROOT / "notebooks" / "README.md"):
        shutil.copy(page, SOURCE / page.relative_to(ROOT))
    for notebook in notebooks:
        prepare(run / notebook.name, SOURCE / notebook.relative_to(ROOT))
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
    home = BUILD / "html" / "index.html"
    home.write_text(home.read_text("utf-8").replace("/main/index.md", "/main/README.md"), "utf-8")
    build_lite()
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
    if any(target.match(f"{name}.ipynb") for name in PAPER):
        lite = os.path.relpath(SOURCE / "lite", target.parent)
        notebook.cells.insert(1, new_markdown_cell(RUN_HERE.format(lite, target.name)))
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)


def build_lite() -> None:
    """The part of the site that runs: JupyterLite, `PAPER` and a wheel of the package."""
    folder = BUILD / "lite"
    (folder / "files").mkdir(parents=True)
    for name in PAPER:
        notebook = on_paper(nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4))
        title, *rest = notebook.cells
        start = [new_markdown_cell(IN_BROWSER), new_code_cell(INSTALL)]
        notebook.cells = [title, *start, *rest]
        notebook.metadata.kernelspec = {"name": "python", "display_name": "Python (Pyodide)"}
        nbformat.write(notebook, folder / "files" / f"{Path(name).name}.ipynb")
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "pypi")]
    python = [sys.executable, "-m"]
    subprocess.run([*python, "pip", "wheel", "--quiet", *options, str(ROOT)], check=True)
    (folder / "jupyter-lite.json").write_text(LITE, "utf-8")
    options = ["--apps", "notebooks", "--apps", "tree", "--no-sourcemaps"]
    options += ["--no-unused-shared-packages"]
    options += ["--lite-dir", str(folder), "--output-dir", str(BUILD / "html" / "lite")]
    # It leaves a database in the current folder.
    subprocess.run([*python, "jupyterlite_core", "build", *options], cwd=folder, check=True)


def on_paper(notebook: NotebookNode) -> NotebookNode:
    """A notebook without the cells that need an engine, or a name that only such a cell has.

    A section with no code left goes with its text, and links lead nowhere: there is no other page.
    """
    sections: list[list[NotebookNode]] = [[]]
    missing: set[str] = set()
    left_out: set[str] = set()

    def pure_names(found: re.Match[str]) -> str:
        names = found[1].split(", ")
        missing.update(set(names) - PURE)
        return f"from workshop_lib import {', '.join(name for name in names if name in PURE)}"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(r"\1", cell.source)
            if cell.source.startswith("#"):
                sections.append([])
        else:
            cell.source = IMPORT.sub(pure_names, cell.source)
            names = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Name)]
            bound = {name.id for name in names if isinstance(name.ctx, ast.Store)}
            if missing & {name.id for name in names} - bound:
                missing |= bound
                left_out.add(cell.id)
            else:
                missing -= bound
        sections[-1].append(cell)
    notebook.cells = []
    for section in sections:
        rest = [cell for cell in section if cell.id not in left_out]
        if rest == section or any(cell.cell_type == "code" for cell in rest):
            notebook.cells += rest
    return notebook


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
    """The configuration of Sphinx."""
    theme: dict[str, Any] = {"home_page_in_toc": True, "use_download_button": False}
    theme["navbar_persistent"] = []  # a second search
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
    words = sys.argv[1:] or ["results/latest"]
    sys.exit(main(Path(words[0]).resolve()))
