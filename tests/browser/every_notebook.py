"""Every notebook in JupyterLab, light and dark, with screenshots to look at: `make browser`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workshop_lib.notebooks import NOTEBOOKS
from workshop_lib.paths import CHECKOUT

FOLDER = Path(os.environ.get("SCREENSHOTS", CHECKOUT / "build" / "screenshots"))


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_it_runs_has_words_for_its_pictures_and_fits_a_laptop_light_and_dark(lab, page, name):
    opened = lab.open(page, name)
    opened.run_all()
    faults = {
        "errors": opened.errors(),
        "not run": opened.not_run(),
        "no words": opened.images_without_words(),
        "too wide": opened.too_wide(),
    }
    made = []
    for theme in ("Light", "Dark"):
        opened.use_theme(f"JupyterLab {theme}")
        made += opened.photograph(FOLDER / name, theme.lower())
    assert len(made) >= 4
    opened.end_kernel()
    assert {fault: found for fault, found in faults.items() if found} == {}
