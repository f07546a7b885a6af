"""The lessons on paper run where only pandas is installed: their modules need nothing else."""

from __future__ import annotations

import subprocess
import sys

IMPORT = """
import sys

class NothingElse:
    allowed = {"numpy", "pandas", "dateutil", "six", "tzdata", "workshop_lib", "lazy_loader"}

    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        known = first in sys.stdlib_module_names | self.allowed or first.startswith("_")
        if path is None and not known:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, NothingElse())
import workshop_lib.costs, workshop_lib.measure, workshop_lib.prices
from workshop_lib.simulate import distances, early_refresh, eviction, streams, theory
print(workshop_lib.prices.load_prices().region)
"""


def test_simulations_measurement_and_bills_need_nothing_but_pandas():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("us-east-1\n", "")
