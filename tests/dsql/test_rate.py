"""New connections keep to the rate that Aurora DSQL takes: 100 a second, after a burst of 1,000."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from workshop_lib.dsql import Rate


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


def test_a_burst_passes_at_once_and_what_follows_waits_its_turn():
    rate = Rate(per_second=100, burst=3, clock=Clock())
    waits = [rate.reserve(10) for _ in range(6)]
    assert [reserved for reserved, _ in waits] == [True] * 6
    assert [wait for _, wait in waits] == pytest.approx([0, 0, 0, 0.01, 0.02, 0.03])


def test_after_a_time_without_the_burst_is_there_again_and_no_more():
    clock = Clock()
    rate = Rate(per_second=100, burst=3, clock=clock)
    for _ in range(3):
        rate.reserve(10)
    clock.now += 0.02  # two more may pass
    assert [rate.reserve(0)[0] for _ in range(3)] == [True, True, False]
    clock.now += 3600
    assert [rate.reserve(0)[0] for _ in range(4)] == [True, True, True, False]


def test_what_would_wait_too_long_is_told_so_and_takes_nothing_from_others():
    rate = Rate(per_second=10, burst=1, clock=Clock())
    assert rate.reserve(1) == (True, 0)
    for _ in range(5):
        assert rate.reserve(0.05) == (False, pytest.approx(0.1))
    assert rate.reserve(1) == (True, pytest.approx(0.1))


def test_many_threads_get_turns_of_their_own():
    rate = Rate(per_second=100, burst=1, clock=Clock())
    with ThreadPoolExecutor(16) as threads:
        waits = sorted(wait for _, wait in threads.map(lambda _: rate.reserve(1e9), range(400)))
    assert waits == pytest.approx([n / 100 for n in range(400)])
