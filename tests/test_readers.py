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


def test_with_single_flight_one_query_reaches_the_database_for_all_processes_and_then_none(box):
    box.clear()
    found = concurrent_reads(box, SLOW, (500,), processes=2, readers=5)
    assert found.queries == 1
    assert len(found.moments) == 10
    warm = concurrent_reads(box, SLOW, (500,), processes=2, readers=2)
    assert warm.queries == 0
    assert {m.source for m in warm.moments} == {"cache"}


def test_without_it_there_are_many(box):
    box.clear()
    found = concurrent_reads(box, SLOW, (500,), processes=2, readers=5, single_flight=False)
    assert 2 <= found.queries <= 10
    assert len(found.moments) == 10


def test_processes_that_do_not_get_ready_are_a_clear_error(box, monkeypatch):
    monkeypatch.setattr(readers, "_read", _fall_over)
    with pytest.raises(WorkshopError, match="Not all of 2 processes were ready"):
        concurrent_reads(box, SLOW, (500,), processes=2, readers=1)


def _fall_over(*_):
    os._exit(3)
