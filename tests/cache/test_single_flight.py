"""Threads that want one thing at one moment: one of them loads it, and who shares it depends."""

from __future__ import annotations

import pytest

from workshop_lib.cache.single_flight import Flights, Role


@pytest.fixture
def flights() -> Flights:
    return Flights()


def test_of_many_threads_at_one_moment_exactly_one_leads(flights, at_once):
    joined = at_once(50, lambda: flights.join("k"))
    assert [role for _, role in joined].count(Role.LEADER) == 1
    assert len({id(flight) for flight, _ in joined}) == 1
    assert joined[0][0].joined == 49


def test_who_joins_before_the_load_begins_is_early_and_who_joins_after_that_is_late(flights):
    flight, _ = flights.join("k")
    assert flights.join("k") == (flight, Role.EARLY)
    flights.begin(flight)
    assert flights.join("k") == (flight, Role.LATE)


def test_every_key_has_a_flight_of_its_own(flights):
    one, _ = flights.join("one")
    two, role = flights.join("two")
    assert role is Role.LEADER
    flights.land("two", two)
    assert not one.done.is_set()


def test_what_is_closed_cannot_be_joined_and_is_known_to_the_next(flights):
    first, _ = flights.join("k")
    flights.close(first)
    second, role = flights.join("k")
    assert role is Role.LEADER
    assert second.previous is first
    flights.land("k", first)
    assert first.done.is_set()
    assert flights.join("k") == (second, Role.EARLY)
    flights.land("k", second)
    assert flights.join("k")[0] not in (first, second)


def test_what_is_abandoned_is_waited_for_by_no_one_who_comes_later(flights):
    hung, _ = flights.join("k")
    flights.abandon("k", hung)
    second, role = flights.join("k")
    assert role is Role.LEADER
    assert second.previous is None
    flights.land("k", hung)
    assert flights.join("k") == (second, Role.EARLY)
