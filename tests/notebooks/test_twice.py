"""Notebooks that leave tables, keys and objects run twice in one kernel, as a learner may run them.

The figures of the second run have the names of the first: nothing fails, and nothing is left out.
"""

from __future__ import annotations

import shutil

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from workshop_lib import runner

TWICE = ("01", "02", "04")
TELL = "print(*sorted(ws.result.measurements))"


def test_run_all_and_run_all_once_more_records_figures_of_the_same_names(shared, tmp_path):
    chosen = runner.choose(TWICE, runner.find_notebooks())
    code = ["from workshop_lib import plots\nplots.show = lambda *_: None"]  # drawn elsewhere
    for original in chosen:
        cells = nbformat.read(original.path, as_version=4).cells
        first, *others = [cell.source for cell in cells if cell.cell_type == "code"]
        values = [f"{name} = {value!r}" for name, value in original.quick.items()]
        code += 2 * [first, "\n".join(values), *others, TELL]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    twice = new_notebook(cells=list(map(new_code_cell, code)), metadata={"kernelspec": kernel})
    nbformat.write(twice, tmp_path / "00_twice.ipynb")
    shutil.copytree(runner.NOTEBOOKS / "take_home", tmp_path / "take_home")
    (outcome,), _ = runner.run(out=tmp_path / "out", say=lambda _: None, notebooks=tmp_path)
    assert outcome.ok, runner.describe(outcome)
    executed = nbformat.read(tmp_path / "out" / "00_twice.ipynb", as_version=4).cells
    told = ["".join(one.text for one in c.outputs) for c in executed if c.source == TELL]
    assert len(told) == 2 * len(TWICE)
    assert all(told)
    assert told[0::2] == told[1::2]
