"""What scripts/build_site.py makes of executed notebooks and pages before Sphinx reads them."""

from __future__ import annotations

import importlib.util

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workshop_lib.paths import CHECKOUT

spec = importlib.util.spec_from_file_location("build_site", CHECKOUT / "scripts" / "build_site.py")
build_site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_site)


@pytest.mark.parametrize(
    ("repository", "link", "becomes"),
    [
        ("", "[cost](../notebooks/15_count_the_cost.ipynb#bill)", None),
        ("", "[rules](dsql-rules.md)", None),
        ("", "[a page](https://example.org/a.md)", None),
        ("", "[start](../README.md#start)", "[start](../index.md#start)"),
        ("", "[the licence](../LICENSE)", "the licence"),
        ("me/it", "[the licence](../LICENSE)", "[the licence](https://github.com/me/it/blob/main/LICENSE)"),
    ],
)  # fmt: skip
def test_links_lead_to_a_page_or_to_the_repository_if_one_is_known(
    repository, link, becomes, monkeypatch
):
    monkeypatch.setattr(build_site, "REPOSITORY", repository)
    monkeypatch.setattr(build_site, "ADDRESS", f"https://github.com/{repository}")
    assert build_site.relink(link, build_site.SOURCE / "docs") == (becomes or link)


def test_a_run_that_lacks_a_notebook_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"\.ipynb. `make run"):
        build_site.main(tmp_path)


def test_pictures_keep_their_alt_texts_and_collapsed_code_stays_collapsed(tmp_path):
    image = new_output(
        "display_data", {"image/png": "AA=="}, metadata={"image/png": {"alt": "Six"}}
    )
    cell = new_code_cell("draw()", outputs=[image], metadata={"jupyter": {"source_hidden": True}})
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "executed.ipynb")
    build_site.prepare(tmp_path / "executed.ipynb", tmp_path / "site" / "page.ipynb")
    (made,) = nbformat.read(tmp_path / "site" / "page.ipynb", as_version=4).cells
    assert made.metadata["mystnb"] == {"image": {"alt": "Six"}}
    assert made.metadata["tags"] == ["hide-input"]


@pytest.mark.parametrize(
    ("page", "lite"),
    [
        ("notebooks/15_count_the_cost", "../lite"),
        ("notebooks/more/06_eviction_on_paper", "../../lite"),
    ],
)
def test_a_notebook_that_runs_in_a_browser_leads_there(page, lite, tmp_path, monkeypatch):
    monkeypatch.setattr(build_site, "SOURCE", tmp_path)
    target = tmp_path / f"{page}.ipynb"
    notebook = new_notebook(cells=[new_markdown_cell("# A title")])
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    build_site.prepare(tmp_path / "executed.ipynb", target)
    _, link = nbformat.read(target, as_version=4).cells
    assert f'href="{lite}/notebooks/index.html?path={target.name}"' in link.source


def test_on_paper_cells_that_need_an_engine_go_and_sections_without_code_with_them():
    cells = [
        new_markdown_cell("# On paper, see [the map](README.md)"),
        new_code_cell("from workshop_lib import costs, open_workshop"),
        new_code_cell("ws = open_workshop()\nprices = ws.prices"),
        new_code_cell("prices = 3"),
        new_markdown_cell("## Clean up"),
        new_code_cell("before = ws.inventory()"),
        new_markdown_cell("What is left?"),
        new_code_cell("before"),
        new_markdown_cell("## What you found"),
        new_code_cell("costs, prices"),
    ]
    found = build_site.on_paper(new_notebook(cells=cells))
    assert [cell.source for cell in found.cells] == [
        "# On paper, see the map",
        "from workshop_lib import costs",
        "prices = 3",
        "## What you found",
        "costs, prices",
    ]
