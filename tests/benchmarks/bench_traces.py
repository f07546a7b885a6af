"""A trace of ten million requests: a minute on one core and 1 GB have to be enough.

Counted is the process's own time, in a process of its own. Beside it, what one pass over the file
and one sorting of the keys take, which nothing can do without.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

REQUESTS, KEYS = 10_000_000, 2_000_000
STEPS = {
    "ours": "trace = traces.read_trace(sys.argv[1]);"
    "found = simulate.stack_distances(trace.reads, trace.key_bytes);"
    "simulate.hit_ratios(found, [1e6, 1e7, 1e8])",
    "split each line, sort the keys": "keys = [hash(line.split(',')[1]) for line in "
    "open(sys.argv[1])]; np.argsort(keys, kind='stable')",
}
PROGRAM = (
    "import resource, sys, time; import numpy as np; from workshop_lib import simulate, traces;"
    "traces.Trace, simulate.stack_distances; began = time.process_time(); {steps};"
    "print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    rng = np.random.default_rng(1)
    up_to = np.cumsum(np.arange(1, KEYS + 1) ** -0.9)
    path = tmp_path_factory.mktemp("trace") / "trace.csv"
    with path.open("w") as out:
        out.write("time,key,size,op\n")
        for start in range(0, REQUESTS, REQUESTS // 10):
            keys = np.searchsorted(up_to, rng.random(REQUESTS // 10) * up_to[-1]).tolist()
            out.writelines(
                f"{start + n},user:{key}:profile,{50 + key % 900},{'read' if n % 10 else 'write'}\n"
                for n, key in enumerate(keys)
            )
    return path


def test_the_curve_of_ten_million_requests(file, line, judge):
    seconds, memory = {}, {}
    for name, steps in STEPS.items():
        program = PROGRAM.format(steps=steps)
        done = subprocess.run(
            [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True
        )
        taken, peak = done.stdout.split()
        seconds[name] = float(taken)
        memory[name] = int(peak) * (1 if sys.platform == "darwin" else 1024)
    ours, baseline = seconds.values()
    ratio, told = ours / baseline, (f"{one:.1f} s" for one in seconds.values())
    what = f"10,000,000 requests, read and curve ({memory['ours'] / 1e6:,.0f} MB)"
    judge(line(what, next(told), f"{baseline:.1f} s", "", ratio, (ratio, ratio), None), 12.0)
    assert memory["ours"] < 1e9
    assert ours < 60
