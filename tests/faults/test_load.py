"""Load tests whose processes are killed, whatever they are doing at that moment."""

import contextlib
import os
import signal
import struct
import subprocess
import sys
import time

import psutil
import pytest

from workshop_lib.load import drivers
from workshop_lib.load.drivers import LocalWorkers, run_jobs
from workshop_lib.load.jobs import Ping
from workshop_lib.load.means import Equipment
from workshop_lib.services.processes import wait_until
from workshop_lib.workshop import wipe_namespace

SOON_S = 60.0
NEVER_S = 120.0


def die_while_answering(pipe, equipment, parent):
    """A worker process that is killed in the middle of its second answer."""
    pipe.recv()
    pipe.send(({"ready": True}, ""))
    pipe.recv()
    os.write(pipe.fileno(), struct.pack("!i", 1_000) + b"half an answer")
    os.kill(os.getpid(), signal.SIGKILL)


def has_ended(process):
    """Without waiting for it, which is its parent's business."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def equipment(shared):
    return Equipment(shared.database.endpoint, shared.namespace)


def test_a_worker_killed_in_mid_answer_keeps_no_other_waiting(equipment, monkeypatch):
    work = drivers._work
    monkeypatch.setattr(drivers, "_work", die_while_answering)
    with LocalWorkers(equipment, at_once=2) as two:
        monkeypatch.setattr(drivers, "_work", work)  # for those that come in their place
        began = time.monotonic()
        found = run_jobs(two, [Ping()] * 6, NEVER_S)
        assert time.monotonic() - began < NEVER_S / 2
    assert [bool(one.answer) for one in found.each].count(False) == 2
    assert all("killed" in one.error for one in found.each if not one.answer)


def has_threads(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.num_threads() > 1
    return False


def test_workers_killed_between_two_jobs_are_replaced(equipment):
    before = set(psutil.Process().children())
    with LocalWorkers(equipment, at_once=2) as two:
        workers = set(psutil.Process().children()) - before
        assert len(workers) == 2
        for worker in workers:
            worker.kill()
        assert wait_until(lambda: all(map(has_ended, workers)), SOON_S)
        # A process that has ended may have threads that have not, with its end of the pipe open.
        assert wait_until(lambda: not any(map(has_threads, workers)), SOON_S)
        found = run_jobs(two, [Ping()] * 4, NEVER_S)
    assert [one.error for one in found.each] == [""] * 4


def test_a_job_that_never_ends_is_given_up_and_the_next_is_done(equipment, monkeypatch):
    monkeypatch.setattr(drivers, "GRACE_S", 0.3)
    before = set(psutil.Process().children())
    with LocalWorkers(equipment, at_once=1) as one:
        (worker,) = set(psutil.Process().children()) - before
        worker.suspend()
        (stuck,) = run_jobs(one, [Ping()], 0.2).each
        assert "time limit" in stuck.error
        monkeypatch.setattr(drivers, "GRACE_S", NEVER_S)
        assert run_jobs(one, [Ping()], 0.2).each[0].answer == {"ready": True}


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
