"""Every notebook runs alone, and again in the same kernel: Run All, and Run All once more."""

from __future__ import annotations

import nbformat
import pytest

from workshop_lib import runner


@pytest.mark.parametrize("name", [n.name for n in runner.find_notebooks()])
def test_it_runs_alone_and_twice_in_one_kernel(name, shared, tmp_path):
    """Run All, and Run All again, in a namespace that has never seen another notebook."""
    original = next(n for n in runner.find_notebooks() if n.name == name)
    once = nbformat.read(original.path, as_version=4)
    body = [cell.source for cell in once.cells if cell.cell_type == "code"]
    quick = "\n".join(f"{key} = {value!r}" for key, value in original.quick.items())
    marked = next(i for i, c in enumerate(c for c in once.cells if c.cell_type == "code")
                  if "parameters" in c.metadata.get("tags", []))  # fmt: skip
    body.insert(marked + 1, quick)
    twice = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in body + body],
        metadata={"kernelspec": once.metadata.kernelspec},
    )
    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(twice, folder / f"{name}.ipynb")
    outcomes, _ = runner.run(out=tmp_path / "out", say=lambda _: None, notebooks=folder)
    assert [runner.describe(outcome) for outcome in outcomes if not outcome.ok] == []
