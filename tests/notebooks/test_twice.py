"""Every notebook runs alone, and again in the same kernel: Run All, and Run All once more."""

from __future__ import annotations

import nbformat
import pytest

from workshop_lib import runner

NOTEBOOKS = runner.find_notebooks()
# One run of all of them: 13 times the start of a run would be half a minute.
pytestmark = pytest.mark.timeout(900)


def doubled(original):
    """A notebook with every cell twice, and the quick values as a learner would set them."""
    once = nbformat.read(original.path, as_version=4)
    body = [cell.source for cell in once.cells if cell.cell_type == "code"]
    quick = "\n".join(f"{key} = {value!r}" for key, value in original.quick.items())
    marked = next(i for i, c in enumerate(c for c in once.cells if c.cell_type == "code")
                  if "parameters" in c.metadata.get("tags", []))  # fmt: skip
    body.insert(marked + 1, quick)
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in body + body],
        metadata={"kernelspec": once.metadata.kernelspec},
    )


@pytest.fixture(scope="module")
def outcomes(shared, tmp_path_factory):
    """Each in a kernel and a namespace that have never seen another notebook."""
    folder = tmp_path_factory.mktemp("notebooks")
    for original in NOTEBOOKS:
        nbformat.write(doubled(original), folder / original.path.name)
    found, _ = runner.run(out=folder / "out", workers=2, say=lambda _: None, notebooks=folder)
    return {outcome.name: outcome for outcome in found}


@pytest.mark.parametrize("name", [n.name for n in NOTEBOOKS])
def test_it_runs_alone_and_twice_in_one_kernel(name, outcomes):
    outcome = outcomes[name]
    assert outcome.ok, runner.describe(outcome)
