"""The page of a run says what happened, in figures with units, and needs nothing from elsewhere."""

import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workshop_lib.findings import statements
from workshop_lib.report import TEMPLATES, write_report
from workshop_lib.results import Measurement, Result, write_json

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SERVICES = {
    kind: {"label": label, "version": version, "embedded": True, "emulated": emulated, "aws": False}
    for kind, label, version, emulated in (
        ("database", "local PostgreSQL 16", "PostgreSQL 16.14", False),
        ("cache", "local Valkey", "Valkey 9", False),
        ("store", "local S3 emulation", "", True),
    )
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
ERROR = {"cell": 7, "source": f"print({BAD!r})", "error": f"ValueError: {BAD}", "traceback": BAD}


def result(name: str, title: str, seconds: float, error: dict | None = None) -> dict:
    """A result as the runner completes it."""
    made = Result(name, "run_1", SERVICES, parameters={}, size="quick")
    made.measurements = {} if error else FIGURES
    for far in () if error else (0.005, 0.02):
        made.note_latency({"database": far, "cache": 0.0005, "store": 0.0})
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
    write_json(run / "03_fails.json", result("03_fails", f"Title {BAD}", 1.0, ERROR))
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
    (cells,) = re.findall(rf'<tr><th scope="row">{name}</th>(.*?)</tr>', page, re.DOTALL)
    return re.findall(r">([^<]*)</td>", cells)


def words(page: str) -> str:
    return " ".join(Elements(page).text.split())


def test_every_notebook_is_named_with_its_outcome_and_time(page):
    text = words(page)
    assert "1 of 2 notebooks passed in 13.3 s · quick size" in text
    assert "Cache a query ✓ passed 12.3 s" in text
    assert f"Title {BAD} ✗ failed 1.0 s" in text
    assert f"Failed: Title {BAD} ." in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("hit, median", ["31.2 µs", "30 to 32.5 µs", "900"]),
        ("hit, p99", ["88 µs", "–", "900"]),
        ("rows read", ["1,234,567 rows", "–", "1"]),
        ("miss mean all", ["12.3 ms", "–", "1"]),
        ("almost thousand", ["1,000 µs", "–", "1"]),
        ("everything equal", ["yes", "–", "1"]),
        ("hit ratio", ["0.9", "–", "1"]),
    ],
)
def test_figures_have_units_intervals_and_sample_counts(page, name, shown):
    assert row(page, name) == shown


def test_the_percentiles_beside_a_median_are_below_the_fold(page):
    above, below = page.split("1 more")
    assert "hit, median" in above
    assert "hit, p99" not in above
    assert "hit, p99" in below


def test_the_services_are_listed_with_versions_and_emulations_are_called_so(page):
    text = " ".join(Elements(page).text.split())
    assert "database local PostgreSQL 16 PostgreSQL 16.14" in text
    assert "store local S3 emulation (emulated) –" in text


def test_emulated_latencies_are_named_where_there_were_any(page):
    text = " ".join(Elements(page).text.split())
    (found,) = re.findall(r"emulated latencies: (.*? 20 ms, \S+ \S+ ms)", text)
    assert found == "database 5 ms, cache 0.5 ms; database 20 ms, cache 0.5 ms"


def test_a_failure_shows_its_cell_code_and_error(page):
    text = Elements(page).text
    assert f"Cell 7: ValueError: {BAD}" in text
    assert f"print({BAD!r})" in text


def test_text_from_notebooks_cannot_become_markup(page):
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(") >= 8


def test_pictures_are_embedded_with_their_text(page):
    ((_, picture),) = [found for found in Elements(page).found if found[0] == "img"]
    assert picture == {
        "src": f"data:image/png;base64,{PNG}", "alt": 'Hits "fast", misses <slow>',
    }  # fmt: skip


def test_links_lead_to_sections_and_to_files_that_are_there(page, folder):
    elements = Elements(page)
    links = set(elements.values("a", "href"))
    assert {"02_cache.html", "02_cache.ipynb", "02_cache.json", "03_fails.json"} <= links
    places = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(places) == len(set(places))
    for link in links:
        assert link[1:] in places if link.startswith("#") else (folder / link).is_file()


def test_the_page_loads_nothing_from_elsewhere(page):
    assert re.findall(r"https?:|url\(|@import", page) == []
    assert {tag for tag, _ in Elements(page).found} & {"link", "script", "iframe"} == set()


def test_the_page_allows_itself_nothing_but_its_own_style_and_embedded_pictures(page):
    elements = Elements(page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    its_own = b64encode(sha256(style.encode()).digest()).decode()
    policy = next(a["content"] for t, a in elements.found if t == "meta" and "http-equiv" in a)
    assert policy.split("; ") == [
        "default-src 'none'", "img-src data:", f"style-src 'sha256-{its_own}'",
        "base-uri 'none'", "form-action 'none'",
    ]  # fmt: skip
    assert [a for _, a in elements.found if "style" in a] == []


def test_headings_come_in_order_and_tables_have_headers_with_a_scope(page):
    elements = Elements(page)
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert set(elements.values("th", "scope")) == {"col", "row"}


THEMES = re.findall(r":root \{([^}]*--ink[^}]*)\}", (TEMPLATES / "report.css").read_text())


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["paper", "ground", "note"])
def test_text_stands_out_from_its_ground(theme, ground):
    """Contrast as WCAG 2 defines it: 4.5 or more, for text of any size."""
    colours = dict(re.findall(r"--(\w+): #(\w{6})", theme))

    def luminance(name):
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    texts = ["ink", "link"] if ground == "note" else ["ink", "soft", "good", "bad", "link"]
    for text in texts:
        low, high = sorted((luminance(text), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, text


def test_there_are_two_themes():
    assert len(THEMES) == 2


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
    assert "No notebook has left a result" in page
    assert "In short" not in page


POOLED = {
    "pooled_p50": Measurement(300.0, "µs", 40, 290.0, 310.0),
    "hit_p50": Measurement(100.0, "µs", 40, 95.0, 105.0),
    "warm_p50": Measurement(7_000.0, "µs", 40, 6_000.0, 8_000.0),
}


def write_run(folder: Path, services=SERVICES, size="full", **more) -> str:
    """The page of a run of notebook 08 alone, as text."""
    made = Result("08_compare_cold_warm_pooled", "run_1", services, size=size)
    made.measurements = POOLED
    whole = {**made.to_json(), "title": "08 · Compare", "ok": True, "seconds": 2.0, "error": None}
    write_json(folder / "08_compare_cold_warm_pooled.json", {**whole, **more})
    return words(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_begins_with_what_the_run_found_and_what_is_missing(tmp_path):
    text = write_run(tmp_path)
    assert "1 of 1 notebook passed" in text
    assert (
        "How much faster is a hit than the query? 3 times faster: 100 µs from the cache, 300 µs "
        "from the database over a pooled connection. Against a new connection for each query it "
        "would look like 70 times . 95 % interval 2.76 to 3.26 times, n = 40 · notebook 08"
    ) in text
    assert "Not answered by this run: 7 questions" in text
    assert "Does every query gain from a cache? Notebook 02 was not run." in text
    assert "Missing:" not in text


def test_what_a_failed_notebook_would_have_said_is_missing_at_the_top(tmp_path):
    text = write_run(tmp_path, ok=False, measurements={}, error={**ERROR, "cell": 3})
    assert "Missing: How much faster is a hit than the query? Notebook 08 failed." in text
    assert "No figure of this run has a published one to stand beside" in text


def test_a_figure_stands_beside_the_published_one_with_the_reasons(tmp_path):
    text = write_run(tmp_path)
    assert (
        "pooled, database 5 to 10 ms 300 µs 290 to 310 µs 40 17 to 33 times less "
        "no network, local PostgreSQL"
    ) in text
    assert "cold, database 200 to 300 ms not in this run (notebook 08)" in text
    assert text.count("The database was a local PostgreSQL on this machine") == 1


def test_on_aws_the_reasons_are_others(tmp_path):
    on_aws = {
        kind: {**info, "label": f"{kind} of AWS", "embedded": False, "aws": True, "emulated": False}
        for kind, info in SERVICES.items()
    }
    text = write_run(tmp_path, on_aws)
    assert "database of AWS" in text
    assert "another cluster and client" in text
    assert "no network" not in text
    assert "without a network" not in text


@pytest.mark.parametrize(
    ("size", "workers", "notes"),
    [
        ("quick", 1, ["A quick run"]),
        ("quick", 2, ["A quick run", "up to 2 notebooks at the same time, which take"]),
        ("full", 1, []),
        ("full", 3, ["Up to 3 notebooks ran at the same time"]),
    ],
)
def test_rough_and_crowded_runs_say_so_first(tmp_path, size, workers, notes):
    text = write_run(tmp_path, size=size, workers=workers)
    told = text.partition("In short")[0]
    assert [note for note in notes if note not in told] == []
    assert ("at the same time" in told) is (workers > 1)
    assert ('make run ARGS="--size full"' in told) is (size == "quick")
    assert ("one notebook at a time" in text) is (workers == 1)


# --- what is damaged ---


def test_a_damaged_result_is_a_failed_notebook_and_the_others_keep_their_parts(tmp_path):
    write_json(tmp_path / "02_cache.json", result("02_cache", "Cache a query", 1.0))
    (tmp_path / "03_broken.json").write_text(f"<<<<<<< {BAD}")
    (tmp_path / "02_cache.ipynb").write_text("{")
    (tmp_path / "04_folder.json").mkdir()
    text = words(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "1 of 3 notebooks passed" in text
    assert "Failed: 03_broken , 04_folder ." in text
    assert "03_broken.json is not a result" in text
    assert "1,234,567 rows" in text


@pytest.mark.parametrize("name", [one.notebook for one in statements()])
def test_figures_of_another_kind_leave_a_gap_and_no_error(tmp_path, name):
    made = Result(name, "run_1", SERVICES, parameters={}, size="quick").to_json()
    for value in ("text", True, 0, -1, 1e308, 5e-324):
        figure = {"value": value, "unit": "s", "n": 0, "low": -1e308, "high": 1e308}
        needs = {need: figure for one in statements() for need in one.needs}
        write_json(tmp_path / f"{name}.json", {**made, "measurements": needs})
        assert name in write_report(tmp_path).read_text(encoding="utf-8")
