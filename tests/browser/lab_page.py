"""JupyterLab as somebody sees it who sits before it: one notebook, open in a browser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


def expect(subject: Any) -> Any:
    """Playwright's, imported only now."""
    from playwright import sync_api

    return sync_api.expect(subject)


LAPTOP = {"width": 1366, "height": 768}
"""A small laptop's screen, CSS pixels."""
OPEN_S = 60
CELL_S = 120
BARS = 240
"""The menu and the bars around a notebook, pixels."""
TALLEST = 12_000
"""Chromium cuts pictures that are much taller, pixels."""
AT_REST = """() => {
    // Folded cells show no number. And a cell gets its star only when its turn is near: that
    // none has one does not mean the end.
    const prompts = [...document.querySelectorAll(
        '.jp-CodeCell .jp-InputPrompt:not(.jp-Placeholder-prompt)')];
    const texts = prompts.map(prompt => prompt.textContent);
    const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
    return texts.every(text => /[0-9]/.test(text)) ||
        (failed !== null && !texts.some(text => text.includes('*')));
}"""
NUMBERED = ".jp-CodeCell .jp-InputPrompt:not(.jp-Placeholder-prompt)"
PROMPTS = "prompts => prompts.map(prompt => prompt.textContent.replace(/[^0-9]/g, ''))"
NAMELESS = """root => [...root.querySelectorAll('.jp-OutputArea img')]
    .filter(image => !image.alt.trim()).map(image => image.outerHTML.slice(0, 80))"""
TOO_WIDE = """root => {
    // The area that would have to scroll, and what in it is too wide.
    const areas = root.querySelectorAll('.jp-OutputArea-output, .jp-RenderedMarkdown');
    return [...areas].filter(area => area.scrollWidth > area.clientWidth + 1).map(area => {
        const cell = area.closest('.jp-Cell');
        const number = [...root.querySelectorAll('.jp-Cell')].indexOf(cell);
        const kind = area.querySelector('table') ? 'table' : 'output';
        const text = area.textContent.trim().replace(/\\s+/g, ' ').slice(0, 60);
        return `cell ${number}: ${kind} of ${area.scrollWidth} pixels in ` +
            `${area.clientWidth}: ${text}`;
    });
}"""


@dataclass(frozen=True, slots=True)
class Lab:
    """A running `workshop lab`."""

    url: str
    token: str
    checkout: Path

    def open(self, page: Page, name: str) -> NotebookPage:
        """Open a notebook by its name, without the ending, and wait for its kernel."""
        page.set_viewport_size(LAPTOP)  # type: ignore[arg-type]
        page.goto(f"{self.url}lab/tree/notebooks/{name}.ipynb?reset&token={self.token}")
        # Whoever is quicker than the kernel is asked which one to take.
        idle = page.locator(".jp-StatusBar-Widget").get_by_text("| Idle")
        expect(idle).to_be_visible(timeout=OPEN_S * 1000)
        return NotebookPage(page)


class NotebookPage:
    """The notebook that a page shows."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.book = page.locator(".jp-Notebook")
        self.cells = self.book.locator(".jp-Cell")

    def run_all(self, seconds: float = 280) -> None:
        """By the menu, as in the README; ends with the last cell, or with one that failed."""
        self.choose("Run", "Run All Cells")
        self.page.wait_for_function(AT_REST, timeout=seconds * 1000)

    def choose(self, *names: str) -> None:
        """Take an entry of the menu, by the names on the way to it."""
        for name in names:
            # By its looks: an entry that opens a further menu has no role.
            label = self.page.locator(".lm-MenuBar-itemLabel, .lm-Menu-itemLabel")
            label.filter(has_text=re.compile(f"^{re.escape(name)}$"), visible=True).click()

    def end_kernel(self) -> None:
        """By the menu."""
        self.choose("Kernel", "Shut Down Kernel")
        expect(self.page.locator(".jp-StatusBar-Widget").get_by_text("| Idle")).to_have_count(
            0, timeout=OPEN_S * 1000
        )

    def code_cell(self, text: str) -> Locator:
        """The code cell with this text in it."""
        return self.book.locator(".jp-CodeCell").filter(
            has=self.page.locator(".jp-InputArea", has_text=text)
        )

    def write(self, cell: Locator, source: str) -> None:
        """Put something else into a cell."""
        cell.locator(".cm-content").click()
        self.page.keyboard.press("ControlOrMeta+A")
        self.page.keyboard.insert_text(source)

    def run(self, cell: Locator) -> None:
        """Run one cell."""
        before = cell.locator(".jp-InputPrompt").first.text_content()
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Shift+Enter")
        prompt = cell.locator(".jp-InputPrompt").first
        expect(prompt).not_to_have_text(before or "", timeout=CELL_S * 1000)
        expect(prompt).not_to_contain_text("*", timeout=CELL_S * 1000)

    def not_run(self) -> list[int]:
        """Places among the unfolded code cells of those without a number, from 0."""
        numbers: list[str] = self.book.locator(NUMBERED).evaluate_all(PROMPTS)
        return [place for place, number in enumerate(numbers) if not number]

    def errors(self) -> list[str]:
        """What stands in red: errors, and whatever else went to standard error."""
        kinds = ["application/vnd.jupyter.stderr", "application/vnd.jupyter.error"]
        shown = ", ".join(f".jp-OutputArea-output[data-mime-type='{kind}']" for kind in kinds)
        return [text[-400:] for text in self.book.locator(shown).all_text_contents()]

    def images_without_words(self) -> Sequence[str]:
        """Pictures among the outputs that have no text for those who cannot see them."""
        return list(self.book.evaluate(NAMELESS))

    def too_wide(self) -> Sequence[str]:
        """Tables and outputs that have to be pushed sideways, with their cell's number."""
        return list(self.book.evaluate(TOO_WIDE))

    def use_theme(self, name: str) -> None:
        """Choose "JupyterLab Light" or "JupyterLab Dark", by the menu."""
        self.choose("Settings", "Theme", name)
        body = self.page.locator("body")
        expect(body).to_have_attribute("data-jp-theme-name", name, timeout=OPEN_S * 1000)

    def photograph(self, folder: Path, theme: str) -> list[Path]:
        """Save the notebook, up to TALLEST, and each output; their names begin with the theme."""
        folder.mkdir(parents=True, exist_ok=True)
        height = self.page.evaluate(
            "document.querySelector('.jp-WindowedPanel-outer').scrollHeight"
        )
        tall = {"width": LAPTOP["width"], "height": min(height + BARS, TALLEST)}
        self.page.set_viewport_size(tall)  # type: ignore[arg-type]
        made = [folder / f"{theme}.png"]
        self.page.screenshot(path=made[0])
        for number, cell in enumerate(self.cells.all()):
            outputs = cell.locator(".jp-Cell-outputArea")
            if outputs.count() and (outputs.bounding_box() or {}).get("height", 0) > 0:
                made.append(folder / f"{theme}_cell_{number:02d}.png")
                outputs.screenshot(path=made[-1])
        self.page.set_viewport_size(LAPTOP)  # type: ignore[arg-type]
        return made
