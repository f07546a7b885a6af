"""Readers in several processes, with real processes, a real cache and a real database."""

import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from workshop_lib import concurrent_reads
from workshop_lib.services.processes import wait_until

SOON_S = 60.0
READS = """
from workshop_lib import concurrent_reads, open_workshop
box = open_workshop("killed").sandbox()
while True:
    concurrent_reads(box, "SELECT 1", processes=2, readers=1)
"""
SLOW = "SELECT count(*) FROM transactions a JOIN transactions b ON a.type = b.type WHERE a.id <= %s"


@pytest.fixture(scope="module")
def box(shared):
    sandbox = shared.sandbox()
    sandbox.load_table("transactions")
    yield sandbox
    sandbox.close()


def test_with_single_flight_one_query_reaches_the_database_and_without_it_many(box):
    found = concurrent_reads(box, SLOW, (300,), processes=2, readers=4)
    assert found.queries == 1
    assert len(found.moments) == 8
    box.clear()
    found = concurrent_reads(box, SLOW, (300,), processes=2, readers=4, single_flight=False)
    assert 2 <= found.queries <= 8


def test_processes_end_with_a_kernel_that_is_killed(shared):
    kernel = subprocess.Popen([sys.executable, "-c", READS], stderr=subprocess.DEVNULL)
    found = []

    def two_are_there():
        with suppress(psutil.Error):  # one has just ended
            below = psutil.Process(kernel.pid).children()
            found[:] = [one for one in below if "spawn_main" in " ".join(one.cmdline())]
        return len(found) == 2

    assert wait_until(two_are_there, SOON_S)
    kernel.kill()
    kernel.wait()
    assert psutil.wait_procs(found, SOON_S)[1] == []
