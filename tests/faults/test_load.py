"""Load tests whose processes are killed, whatever they are doing at that moment."""

import subprocess
import sys
import time

import msgspec
import psutil
import pytest

from workshop_lib.load import ClientConfig, LocalWorkers, drivers
from workshop_lib.load.drivers import PING, run_jobs
from workshop_lib.namespaces import wipe_namespace
from workshop_lib.services.processes import wait_until

SOON_S = 180.0
NEVER_S = 120.0


@pytest.fixture
def config(shared):
    return ClientConfig(shared.database.endpoint, shared.namespace)


def has_ended(process):
    """Without waiting for it, which is its parent's business."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
    except psutil.NoSuchProcess:
        return True


def test_workers_killed_between_two_jobs_are_replaced_and_one_that_hangs_is_given_up(
    config, monkeypatch
):
    before = set(psutil.Process().children())
    with LocalWorkers(config, at_once=2) as two:
        workers = set(psutil.Process().children()) - before
        assert len(workers) == 2
        for worker in workers:
            worker.kill()
        assert wait_until(lambda: all(map(has_ended, workers)), SOON_S)
        found, _ = run_jobs(two, [PING] * 4)
        assert [one.state for one in found] == ["answered"] * 4
        two.prepare()
        for worker in set(psutil.Process().children()) - before - workers:
            worker.suspend()
        began = time.monotonic()
        monkeypatch.setattr(drivers, "GRACE_S", 0.3)
        stuck, _ = run_jobs(two, [msgspec.structs.replace(PING, time_limit_s=0.2)] * 2)
        assert all("given up" in one.errors[0] for one in stuck)
        again, _ = run_jobs(two, [PING] * 4)
        assert [one.state for one in again] == ["answered"] * 4
        assert time.monotonic() - began < NEVER_S
    assert wait_until(lambda: set(psutil.Process().children()) <= before, SOON_S)


def test_what_a_killed_command_left_is_named_and_cleaned_up(ws, tmp_path):
    words = ["load", "inserts", "--scenario", "1", "--workers", "2", "--iterations", "500000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "workshop_lib", *words, "--at-once", "2", "--out", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def rows():
        if ws.database.query("SELECT to_regclass('workshop.business_events') IS NULL")[0][0]:
            return 0
        return ws.database.query("SELECT count(*) FROM workshop.business_events")[0][0]

    below = []
    try:
        assert wait_until(lambda: rows() > 50, SOON_S)
        below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        assert wait_until(lambda: not any(p.is_running() for p in below), SOON_S)
    finally:
        process.kill()
        process.wait()
        for one in below:
            if one.is_running():
                one.kill()
    assert rows() > 50
    cleaned = subprocess.run(
        [sys.executable, "-m", "workshop_lib", "load", "clean"],
        capture_output=True,
        text=True,
        timeout=NEVER_S,
        check=True,
    )
    assert "0 left" in cleaned.stdout
    assert rows() == 0
    wipe_namespace("workshop")
