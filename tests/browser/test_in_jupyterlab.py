"""The notebooks in JupyterLab in a real browser: Run All, pictures, sliders, exercises."""

from __future__ import annotations

import pytest

from workshop_lib import exercise

MISSING = "playwright is not installed: `make browser` installs it"
expect = pytest.importorskip("playwright.sync_api", reason=MISSING).expect

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


def test_run_all_runs_it_to_its_summary_without_an_error(costs):
    assert (costs.errors(), costs.not_run()) == ([], [])
    assert (costs.images_without_words(), costs.too_wide()) == ([], [])
    expect(costs.book.get_by_role("heading", name=SUMMARY)).to_be_visible()


def test_moving_the_slider_changes_the_sentence_beside_it(costs):
    cell = costs.code_cell("ipywidgets.VBox")
    shown, sentence = cell.locator(".widget-readout"), cell.locator(".widget-html-content")
    expect(shown).to_have_text("200")
    before = sentence.text_content() or ""
    assert "USD a month" in before
    cell.get_by_role("slider").focus()
    costs.page.keyboard.press("ArrowRight")
    expect(shown).not_to_have_text("200")
    expect(sentence).not_to_have_text(before)


def test_an_exercise_is_answered_on_the_page_wrong_first_and_then_right(costs):
    known = exercise("15.1").table
    answer = costs.code_cell("def cache_month")
    check = costs.code_cell('exercise("15.1").check')
    verdict = check.locator(".jp-OutputArea-output")
    expect(verdict).to_contain_text("… Not tried yet.")
    costs.write(answer, known.solution.replace("730 * 3600", "730"))
    costs.run(answer)
    costs.run(check)
    expect(verdict).to_contain_text("✗ Not right yet.")
    expect(verdict).to_contain_text("cache_month(")
    costs.write(answer, known.solution)
    costs.run(answer)
    costs.run(check)
    expect(verdict).to_contain_text("✓ Right.")
    expect(verdict).to_contain_text(known.praise.replace("`", "")[:40])
    assert costs.errors() == []
