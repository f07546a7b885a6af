"""Readers in several processes, with real processes, a real cache and a real database."""

import os

import pytest

from workshop_lib import WorkshopError, concurrent_reads, readers

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


def test_processes_that_do_not_get_ready_are_a_clear_error(box, monkeypatch):
    monkeypatch.setattr(readers, "_read", _fall_over)
    with pytest.raises(WorkshopError, match="Not all of 2 processes were ready"):
        concurrent_reads(box, SLOW, (300,), processes=2, readers=1)


def _fall_over(*_):
    os._exit(3)
