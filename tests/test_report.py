"""The page of a run says what happened, in figures with units, and needs nothing from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workshop_lib.report import write_report
from workshop_lib.results import Measurement, Result, write_json

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SERVICES = {
    "database": {"label": "local PostgreSQL 16", "version": "PostgreSQL 16.14", "emulated": False},
    "cache": {"label": "local Valkey", "version": "Valkey 9", "emulated": False},
    "store": {"label": "local S3 emulation", "version": "", "emulated": True},
}
FIGURES = {
    "hit_p50": Measurement(31.25, "µs", 900, 30.0, 32.5),
    "hit_p99": Measurement(88.0, "µs", 900),
    "rows_read": Measurement(1234567, "rows"),
    "miss_mean_all": Measurement(12345.6, "µs"),
    "almost_thousand": Measurement(999.7, "µs"),
    "everything_equal": Measurement(True),
    "hit_ratio": Measurement(0.9),
}
BAD = "<script>alert('hello')</script>"


def result(name: str, title: str, seconds: float, error: dict | None = None) -> dict:
    """A result as the runner completes it."""
    made = Result(name, "run_1", SERVICES, parameters={}, size="quick")
    made.measurements = {} if error else FIGURES
    for far in () if error else (0.005, 0.02):
        made.note_distance({"database": far, "cache": 0.0005, "store": 0.0})
    extra = {"title": title, "ok": error is None, "seconds": seconds, "error": error}
    return {**made.to_json(), **extra, "parameters": {"rows": 10, "query": BAD}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run of two notebooks, the second of which failed; and its page."""
    run = tmp_path_factory.mktemp("run")
    data, alt = {"image/png": PNG}, {"image/png": {"alt": 'Hits "fast", misses <slow>'}}
    cells = [
        new_markdown_cell("# Cache a query\nwith a formula $x^2$"),
        new_code_cell(
            "show(picture)", outputs=[new_output("display_data", data=data, metadata=alt)]
        ),
    ]
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    content = new_notebook(cells=cells, metadata={"widgets": widgets})
    nbformat.write(content, run / "02_cache.ipynb")
    write_json(run / "02_cache.json", result("02_cache", "Cache a query", 12.34))
    error = {
        "cell": 7, "source": f"print({BAD!r})", "error": f"ValueError: {BAD}", "traceback": BAD,
    }  # fmt: skip
    write_json(run / "03_fails.json", result("03_fails", f"Title {BAD}", 1.0, error))
    assert write_report(run) == run / "index.html"
    return run


@pytest.fixture(scope="module")
def page(folder) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element of a page, as its name and attributes; and the page's text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"

    def values(self, tag: str, attribute: str) -> list[str | None]:
        return [a.get(attribute) for t, a in self.found if t == tag]


def row(page: str, name: str) -> list[str]:
    """The cells of the figure's row."""
    (cells,) = re.findall(rf"<tr><td>{name}</td>(.*?)</tr>", page, re.DOTALL)
    return re.findall(r">([^<]*)</td>", cells)


def test_every_notebook_is_named_with_its_outcome_and_time(page):
    text = " ".join(Elements(page).text.split())
    assert "1 of 2 notebooks passed in 13.3 s · quick size" in text
    assert "✓ passed Cache a query 12.3 s" in text
    assert f"✗ failed Title {BAD} 1.0 s" in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("hit p50", ["31.2 µs", "30 – 32.5 µs", "900"]),
        ("hit p99", ["88 µs", "–", "900"]),
        ("rows read", ["1,234,567 rows", "–", "1"]),
        ("miss mean all", ["12,346 µs", "–", "1"]),
        ("almost thousand", ["1,000 µs", "–", "1"]),
        ("everything equal", ["yes", "–", "1"]),
        ("hit ratio", ["0.9", "–", "1"]),
    ],
)
def test_figures_have_units_intervals_and_sample_counts(page, name, shown):
    assert row(page, name) == shown


def test_the_percentiles_beside_a_median_are_below_the_fold(page):
    above, below = page.split("more figures</summary>")
    assert "hit p50" in above
    assert "hit p99" not in above
    assert "hit p99" in below


def test_the_services_are_listed_with_versions_and_emulations_are_called_so(page):
    text = " ".join(Elements(page).text.split())
    assert "database local PostgreSQL 16 PostgreSQL 16.14" in text
    assert "store local S3 emulation (emulated) –" in text


def test_emulated_distances_are_named_where_there_were_any(page):
    text = " ".join(Elements(page).text.split())
    (found,) = re.findall(r"emulated distances: (.*? 20 ms, \S+ \S+ ms)", text)
    assert found == "database 5 ms, cache 0.5 ms; database 20 ms, cache 0.5 ms"


def test_a_failure_shows_its_cell_code_and_error(page):
    text = Elements(page).text
    assert f"Cell 7: ValueError: {BAD}" in text
    assert f"print({BAD!r})" in text


def test_text_from_notebooks_cannot_become_markup(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(") >= 6


def test_pictures_are_embedded_with_their_text(page):
    ((_, picture),) = [found for found in Elements(page).found if found[0] == "img"]
    assert picture == {
        "src": f"data:image/png;base64,{PNG}", "alt": 'Hits "fast", misses <slow>',
    }  # fmt: skip


def test_links_lead_to_sections_and_to_files_that_are_there(page, folder):
    elements = Elements(page)
    links = set(elements.values("a", "href"))
    assert {"02_cache.html", "02_cache.ipynb", "02_cache.json", "03_fails.json"} <= links
    sections = elements.values("section", "id")
    for link in links:
        assert link[1:] in sections if link.startswith("#") else (folder / link).is_file()


def test_the_page_loads_nothing_from_elsewhere(page):
    assert re.findall(r"https?:|url\(|@import", page) == []
    assert {tag for tag, _ in Elements(page).found} & {"link", "script", "iframe"} == set()


def test_an_executed_notebook_s_page_loads_nothing_from_elsewhere(folder):
    exported = (folder / "02_cache.html").read_text(encoding="utf-8")
    elements = Elements(exported)
    assert {src for src in elements.values("script", "src") if src is not None} == set()
    assert elements.values("link", "href") == []
    assert [s for s in elements.values("img", "src") if not str(s).startswith("data:")] == []
    assert re.findall(r"import\(|@import|url\([\"']?(?:https?:)?//", exported) == []
    assert "cdn" not in exported.lower()


def test_an_executed_notebook_s_page_shows_text_code_and_pictures(folder):
    elements = Elements((folder / "02_cache.html").read_text(encoding="utf-8"))
    assert "Cache a query" in elements.text
    assert "show(picture)" in "".join(elements.text.split())
    assert elements.values("img", "src") == [f"data:image/png;base64,{PNG}"]
    assert elements.values("img", "alt") == ['Hits "fast", misses <slow>']


def test_a_run_without_results_still_has_a_page(tmp_path):
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "0 of\n    0 notebooks passed" in page
