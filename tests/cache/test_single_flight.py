"""Threads that want one thing at one moment: one of them fetches it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from workshop_lib.cache import single_flight
from workshop_lib.cache.single_flight import Flights

PATIENCE_S = 4.0
SOON = 20.0


@pytest.fixture
def flights() -> Flights:
    return Flights()


def test_the_first_to_come_leads_and_the_others_join(flights):
    flight, leading = flights.join("k", PATIENCE_S)
    assert leading
    assert [flights.join("k", PATIENCE_S) for _ in range(3)] == [(flight, False)] * 3


def test_of_many_threads_at_one_moment_exactly_one_leads(flights, at_once):
    joined = at_once(50, lambda: flights.join("k", PATIENCE_S))
    assert sum(leading for _, leading in joined) == 1
    assert len({id(flight) for flight, _ in joined}) == 1


def test_every_key_has_a_flight_of_its_own(flights):
    one, _ = flights.join("one", PATIENCE_S)
    two, leading = flights.join("two", PATIENCE_S)
    assert leading
    flights.land("two", two)
    assert not one.done.is_set()
    assert flights.join("one", PATIENCE_S) == (one, False)


def test_a_flight_under_way_has_brought_nothing_yet(flights):
    flight, _ = flights.join("k", PATIENCE_S)
    assert not flight.done.is_set()
    assert (flight.packed, flight.incommunicable, flight.error) == (None, False, None)


def test_whoever_waits_is_woken_by_the_landing_and_finds_what_it_brought(flights):
    flight, _ = flights.join("k", PATIENCE_S)

    def wait() -> object:
        joined, _ = flights.join("k", PATIENCE_S)
        waiting.append(joined)
        return joined.packed if joined.done.wait(SOON) else "nobody called"

    waiting: list[object] = []
    with ThreadPoolExecutor(5) as pool:
        waits = [pool.submit(wait) for _ in range(5)]
        while len(waiting) < 5:
            assert not any(one.done() for one in waits)
        flight.packed = b"packed"
        flights.land("k", flight)
        assert [one.result(SOON) for one in waits] == [b"packed"] * 5


def test_after_the_landing_the_next_to_come_leads_again(flights):
    first, _ = flights.join("k", PATIENCE_S)
    flights.land("k", first)
    assert first.done.is_set()
    second, leading = flights.join("k", PATIENCE_S)
    assert leading
    assert second is not first
    assert not second.done.is_set()


def test_a_flight_that_takes_too_long_is_given_up_and_another_begins(flights, monkeypatch):
    slow, _ = flights.join("k", PATIENCE_S)
    now = slow.started + PATIENCE_S
    monkeypatch.setattr(single_flight, "time", SimpleNamespace(monotonic=lambda: now))
    assert flights.join("k", PATIENCE_S) == (slow, False)
    now += 0.001
    second, leading = flights.join("k", PATIENCE_S)
    assert leading
    assert second is not slow
    now = second.started
    assert flights.join("k", PATIENCE_S) == (second, False)


def test_a_flight_that_was_given_up_lands_for_those_who_joined_it_and_no_others(flights):
    slow, _ = flights.join("k", PATIENCE_S)
    second, leading = flights.join("k", -1.0)  # nobody is as impatient as this
    assert leading
    flights.land("k", slow)
    assert slow.done.is_set()
    assert not second.done.is_set()
    assert flights.join("k", PATIENCE_S) == (second, False)
    flights.land("k", second)
    assert flights.join("k", PATIENCE_S)[1]


def test_landing_twice_is_harmless(flights):
    first, _ = flights.join("k", PATIENCE_S)
    flights.land("k", first)
    second, _ = flights.join("k", PATIENCE_S)
    flights.land("k", first)
    assert flights.join("k", PATIENCE_S) == (second, False)
    assert not second.done.is_set()


def test_nothing_is_kept_of_flights_that_have_landed(flights):
    for n in range(100):
        flights.land(f"k{n}", flights.join(f"k{n}", PATIENCE_S)[0])
    assert flights._under_way == {}
