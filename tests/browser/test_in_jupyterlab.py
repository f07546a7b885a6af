"""The notebooks in JupyterLab in a real browser: Run All, pictures, sliders, exercises."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from workshop_lib import exercise

SUMMARY = "What you found"


@pytest.fixture(scope="module")
def pages(browser):
    """One window for the whole file."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture(scope="module")
def costs(lab, pages):
    """Notebook 15, after Run All."""
    opened = lab.open(pages.new_page(), "15_count_the_cost")
    opened.run_all()
    yield opened
    opened.end_kernel()


def test_run_all_runs_notebook_00_to_its_summary_without_an_error(lab, page):
    opened = lab.open(page, "00_check_the_deployment")
    opened.run_all()
    assert (opened.errors(), opened.not_run()) == ([], [])
    assert opened.images_without_words() == []
    checks = opened.code_cell("report = check_deployment()").locator("table")
    expect(checks).to_contain_text("✓")
    expect(checks).not_to_contain_text("✗")
    picture = opened.book.locator(".jp-OutputArea img")
    expect(picture).to_have_count(1)
    assert "one sample each" in (picture.get_attribute("alt") or "")
    summary = opened.code_cell("ws.summary()").locator(".jp-OutputArea")
    expect(summary).to_contain_text("checks_passed")
    expect(opened.book.get_by_role("heading", name=SUMMARY)).to_be_visible()
    opened.end_kernel()


def test_run_all_runs_notebook_12_to_its_end(costs):
    assert (costs.errors(), costs.not_run()) == ([], [])
    assert costs.images_without_words() == []


def test_moving_the_slider_draws_another_picture_and_the_printed_one_stays(costs):
    still = costs.code_cell("plots.show(draw(rates)").locator("img")
    moving = costs.code_cell("ipywidgets.interact")
    picture = moving.locator("img")
    before, printed = picture.get_attribute("src"), still.get_attribute("src")
    shown = moving.locator(".widget-readout")
    expect(shown).to_have_text("200")
    moving.get_by_role("slider").focus()
    costs.page.keyboard.press("ArrowRight")
    expect(shown).not_to_have_text("200")
    expect(picture).not_to_have_attribute("src", before or "")
    expect(picture).to_have_count(1)
    rate = (shown.text_content() or "").strip()
    expect(picture).to_have_attribute("alt", f"A straight line, for {rate} reads/s.")
    assert still.get_attribute("src") == printed


def test_an_exercise_is_answered_on_the_page_wrong_first_and_then_right(costs):
    known = exercise("15.1")
    answer = costs.code_cell("def cache_month")
    check = costs.code_cell('exercise("15.1").check')
    verdict = check.locator(".jp-OutputArea-output")
    expect(verdict).to_contain_text("… Not tried yet.")
    costs.write(answer, known.solution_source.replace("730 * 3600", "730"))
    costs.run(answer)
    costs.run(check)
    expect(verdict).to_contain_text("✗ Not right yet.")
    expect(verdict).to_contain_text("cache_month(")
    costs.write(answer, known.solution_source)
    costs.run(answer)
    costs.run(check)
    expect(verdict).to_contain_text("✓ Right.")
    expect(verdict).to_contain_text(known.praise.replace("`", "")[:40])
    assert costs.errors() == []


SPOILT = """\
import sys

from IPython.display import HTML, display

display(HTML("<table><tr>" + "<td>unbreakable_words</td>" * 30 + "</tr></table>"))
display(HTML('<img src="data:image/gif;base64,R0lGODlhAQABAAAAACw=" alt=" ">'))
print("a warning", file=sys.stderr)
1 / 0
"""


def test_what_is_too_wide_or_has_no_words_or_failed_is_noticed(costs):
    assert costs.too_wide() == []
    spoilt = costs.code_cell("def cache_month")
    costs.write(spoilt, SPOILT)
    costs.run(costs.code_cell("unbreakable_words"))
    (wide,) = costs.too_wide()
    assert re.fullmatch(r"cell \d+: table of \d+ pixels in \d+: unbreakable_words.*", wide)
    assert len(costs.images_without_words()) == 1
    warning, error = costs.errors()
    assert "a warning" in warning
    assert "ZeroDivisionError" in error
