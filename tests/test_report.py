"""The page of a run says what happened, in figures with units, and needs nothing from elsewhere."""

import json
import math
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workshop_lib.report import export, write_report
from workshop_lib.results import CellError, Measurement, Result, write_json

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
BAD = "<script>alert('hello')</script>"
SERVICES = {
    "database": {"label": "local PostgreSQL 16", "version": "PostgreSQL 16.14"},
    "cache": {"label": f"Valkey {BAD}", "version": "9"},
    "store": {"label": "S3 emulation", "version": "", "emulated": True},
}
QUERY, RATIO, FAILS = "03_is_it_worth_it", "10_compare_cold_warm_pooled", "03_fails"
FIGURES = {
    "report_speed_up": Measurement(9.0, "times", 100, 8.0, 10.0),
    "by_key_speed_up": Measurement(1.0, "times", 100, 0.9, 1.1),
    BAD: Measurement(BAD, BAD),
}
HIT = {
    "pooled_p50": Measurement(300.0, "µs", 40, 290.0, 310.0),
    "hit_p50": Measurement(100.0, "µs", 40, 95.0, 105.0),
    "new_connection_p50": Measurement(7_000.0, "µs", 40, 6_000.0, 8_000.0),
}
ERROR = CellError(7, f"print({BAD!r})", f"ValueError: {BAD}")


def keep(folder, name, **about):
    """A result as the runner completes it."""
    about = {"title": name, "size": "quick", "services": SERVICES} | about
    about = {"started": "2026-11-29T10:00:00+00:00"} | about
    write_json(folder / f"{name}.json", Result(name, "run_1", **about).to_json())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three notebooks, one of which failed; and its page."""
    run = tmp_path_factory.mktemp("run")
    outputs = [
        new_output("display_data", data={"image/png": PNG}, metadata={"image/png": {"alt": text}})
        for text in ('Hits "fast"', "Times <as ever>")
    ]
    cells = [
        new_markdown_cell("# Cache a query\nwith a formula $x^2$"),
        new_code_cell("show(first)", outputs=outputs[:1]),
        new_code_cell("show(second)", outputs=outputs[1:], metadata={"tags": ["headline"]}),
    ]
    widgets = {"application/vnd.jupyter.widget-state+json": {"state": {}, "version_major": 2}}
    executed = new_notebook(cells=cells, metadata={"widgets": widgets})
    nbformat.write(executed, run / f"{QUERY}.ipynb")
    export(run / f"{QUERY}.ipynb")
    far = [{"database_ms": 5.0, "cache_ms": 0.5, "store_ms": 0.0}]
    keep(run, QUERY, measurements=FIGURES, latencies=far)
    keep(run, RATIO, measurements=HIT, title=f"Title {BAD}")
    keep(run, FAILS, ok=False, error=ERROR)
    return run


@pytest.fixture(scope="module")
def page(folder):
    return page_of(folder)


class Page(HTMLParser):
    """A page's elements, as names and attributes; its text, and that above published figures."""

    def __init__(self, source):
        super().__init__()
        self.source, self.found, self.said = source, [], ""
        self.feed(source)
        self.text = " ".join(self.said.split())
        self.top = self.text.partition("Beside published figures")[0]

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.said += data

    def values(self, tag, attribute):
        return [a.get(attribute) for t, a in self.found if t == tag]


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_the_page_says(page):
    for said in (
        "2 of 3 notebooks passed · quick size · 2026-11-29 10:00 UTC",
        "key showed no measurable difference. 9 times: 95 % interval 8 to 10 times, n",
        # Beside published figures; nothing divides them.
        "pooled, database 5 to 10 ms 300 µs 290 to 310 µs 40 any",
        "cold, database 200 to 300 ms – – –",
        "the database was Aurora DSQL there, and local PostgreSQL 16 here",
        # What it ran on.
        "database: local PostgreSQL 16, PostgreSQL 16.14",
        "store: S3 emulation (emulated)",
        "emulated latencies: database 5 ms, cache 0.5 ms",
        # What failed, and where.
        f"Failed: {FAILS}. In short",
        f"Cell 7: ValueError: {BAD}",
    ):
        assert said in page.text
    assert "warm, database" not in page.text  # nothing of ours is like it


def test_it_begins_with_one_picture_and_what_can_be_trusted_at_this_size(page):
    top = page.source.partition("Beside published figures")[0]
    assert top.count("<img") == 1
    assert 'alt="Times &lt;as ever&gt;"' in top
    assert page.top.count("95 % interval") == 1  # not that of 08


def test_of_a_whole_run_the_sentences_with_an_interval_are_at_the_top(tmp_path):
    keep(tmp_path, QUERY, measurements=FIGURES, size="full")
    keep(tmp_path, RATIO, measurements=HIT, size="full")
    top = page_of(tmp_path).top
    assert top.count("95 % interval") == top.count("?") == 2
    assert "quick" not in top
    # Few samples cannot carry this at quick size.
    assert "it would look like 70 times. 3 times: 95 % interval 2.76 to 3.26 times, n = 40." in top


def test_text_from_notebooks_cannot_become_markup(page):
    assert "<script" not in page.source
    assert page.source.count("&lt;script&gt;alert(") >= 5


def test_links_lead_to_places_and_files_that_are_there_a_picture_to_itself(page, folder):
    links = set(page.values("a", "href"))
    files = {f"{QUERY}.{kind}" for kind in ("html", "ipynb", "json", "png")}
    assert files | {f"{RATIO}.json", f"{FAILS}.json"} <= links
    places = {attributes.get("id") for _, attributes in page.found}
    for link in links:
        assert link[1:] in places if link.startswith("#") else (folder / link).is_file()
    assert f'<a href="{QUERY}.png"><img src="data:image/png;base64,{PNG}"' in page.source


def test_the_page_allows_itself_nothing_but_its_own_style_and_embedded_pictures(page):
    assert re.findall(r"https?:|url\(|@import", page.source) == []
    (style,) = re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL)
    its_own = b64encode(sha256(style.encode()).digest()).decode()
    policy = next(a["content"] for t, a in page.found if t == "meta" and "http-equiv" in a)
    assert policy.split("; ") == [
        "default-src 'none'", "img-src data:", f"style-src 'sha256-{its_own}'",
        "base-uri 'none'", "form-action 'none'",
    ]  # fmt: skip
    assert [a for _, a in page.found if "style" in a] == []


def test_an_executed_notebook_s_page_shows_all_and_loads_nothing_from_elsewhere(folder):
    exported = Page((folder / f"{QUERY}.html").read_text(encoding="utf-8"))
    assert "Cache a query" in exported.text
    assert "show(first)show(second)" in "".join(exported.text.split())
    assert exported.values("img", "alt")[0] == 'Hits "fast"'
    assert not any(exported.values("script", "src") + exported.values("link", "href"))
    assert all(str(src).startswith("data:") for src in exported.values("img", "src"))
    assert re.findall(r"import\(|@import|url\([\"']?(?:https?:)?//", exported.source) == []


def test_what_was_done_in_jupyterlab_has_its_title_and_picture_and_no_time(tmp_path, monkeypatch):
    monkeypatch.setattr("workshop_lib.report.NOTEBOOKS", tmp_path / "notebooks")
    (tmp_path / "notebooks").mkdir()
    image = {"data": {"image/png": PNG}, "metadata": {"image/png": {"alt": "Times"}}}
    cells = [
        new_markdown_cell("# 03 · Is it worth it?"),
        new_code_cell("show()", outputs=[new_output("display_data", **image)]),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{QUERY}.ipynb")
    results = tmp_path / "interactive"
    for name, figures in ((QUERY, FIGURES), (RATIO, HIT)):
        keep(results, name, measurements=figures, title="", size="interactive")
    page = page_of(results)
    assert "2 notebooks run in JupyterLab · 2026-11-29 10:00 UTC" in page.text
    assert "03 · Is it worth it? run in JupyterLab on 2026-11-29 at 10:00 UTC" in page.text
    assert "A hit was 3 times faster" in page.top  # as with all that is not quick
    assert page.values("img", "alt") == ["Times", "Times"]
    assert (results / f"{QUERY}.png").read_bytes() == b64decode(PNG)
    assert "The saved notebook has no picture" in page.text


# --- what is missing or damaged ---


def test_what_is_damaged_is_said_and_the_others_keep_their_parts(tmp_path):
    assert "No notebook has left a result" in page_of(tmp_path).text
    keep(tmp_path, QUERY, measurements=FIGURES)
    keep(tmp_path, "05_x")
    (tmp_path / "03_broken.json").write_text(f"<<<<<<< {BAD}")
    (tmp_path / "04_folder.json").mkdir()
    (tmp_path / f"{QUERY}.ipynb").write_text("{")
    text = page_of(tmp_path).text
    for said in (
        "2 of 4 notebooks passed",
        "Failed: 03_broken, 04_folder.",
        "03_broken.json is not a result",
        "The report came 9 times faster",
        "Its executed notebook cannot be shown: NotJSONError",
    ):
        assert said in text


def damaged(content):
    """A result with each of its fields, at any depth, missing or of another type."""
    for key in content:
        yield {k: v for k, v in content.items() if k != key}
        for value in (None, "text", math.nan, 1e308, -1, 10**400, [{}], {"a": []}):
            yield {**content, key: value}
        if isinstance(content[key], dict):
            yield from ({**content, key: inner} for inner in damaged(content[key]))


def test_whatever_a_result_holds_there_is_a_page(tmp_path):
    whole = Result(RATIO, services=SERVICES, measurements=HIT, error=ERROR).to_json()
    for content in [*damaged(whole)][::7]:
        (tmp_path / f"{RATIO}.json").write_text(json.dumps(content))
        assert RATIO in write_report(tmp_path).read_text(encoding="utf-8")
