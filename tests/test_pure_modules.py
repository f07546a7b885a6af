"""The lessons on paper run where only what a browser's Python has is installed."""

from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest

from tests.test_site import build_site
from workshop_lib.paths import NOTEBOOKS

GUARD = """
import sys, threading

class NothingElse:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        known = first in sys.stdlib_module_names | allowed or first.startswith("_")
        if path is None and not known:
            raise ModuleNotFoundError(name, name=name)

def start(thread):
    raise RuntimeError("can't start new thread")

sys.meta_path.insert(0, NothingElse())
threading.Thread.start = start
"""
PANDAS = {"numpy", "pandas", "dateutil", "six", "tzdata"}
DRAWING = {"matplotlib", "mpl_toolkits", "contourpy", "cycler", "kiwisolver", "pyparsing", "PIL"}
DRAWING |= {"packaging", "fontTools", "IPython", "traitlets", "pygments", "typing_extensions"}
DRAWING |= {"argcomplete"}  # IPython asks whether it is there
BROWSER = {*PANDAS, *DRAWING, "comm", "ipywidgets", "lazy_loader", "msgspec", "tqdm"}
"""What comes with the packages of `build_site.BROWSER`, and IPython."""


def run(program: str, allowed: set[str]) -> tuple[str, str]:
    """What a program prints where nothing else can be imported and no thread starts; errors."""
    program = f"allowed = {{'workshop_lib'}} | {allowed}\n{GUARD}\n{program}"
    done = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, check=False
    )
    return done.stdout, done.stderr


def test_simulations_measurement_and_bills_need_little_more_than_pandas():
    program = """
import workshop_lib.costs, workshop_lib.measure, workshop_lib.prices
from workshop_lib.simulate import distances, eviction, streams, theory
print(workshop_lib.prices.load_prices().region)
"""
    assert run(program, PANDAS | {"lazy_loader", "msgspec"}) == ("us-east-1\n", "")


@pytest.mark.parametrize("name", build_site.PAPER)
def test_a_notebook_for_the_browser_runs_there(name):
    read = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    notebook = build_site.on_paper(read)
    parameters, *cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    install = [line for line in build_site.INSTALL.splitlines() if not line.startswith("%")]
    quick = [f"{name} = {value!r}" for name, value in notebook.metadata.workshop.quick.items()]
    assert run("\n".join([*install, parameters, *quick, *cells]), BROWSER)[1] == ""
