import doctest
import math
import time
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from workshop_lib import measure
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.measure import (
    Samples,
    moment,
    moments_on_schedule,
    on_schedule,
    percentile,
    percentile_interval,
    speed_up,
    speed_up_interval,
    time_shuffled,
)

numbers = st.lists(st.floats(0, 1e6), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("q", "expected"), [(1, 10), (20, 10), (21, 20), (50, 30), (99, 50), (100, 50)]
)
def test_percentiles_are_nearest_rank(q, expected):
    assert percentile([50, 10, 40, 20, 30], q) == expected


@given(numbers, st.floats(0.01, 100))
def test_at_least_q_percent_of_the_values_do_not_exceed_the_percentile(values, q):
    found = percentile(values, q)
    at_most = sum(value <= found for value in values)
    assert found in values
    wanted = Fraction(str(q)) * len(values) / 100
    assert at_most >= wanted
    smaller = [value for value in values if value < found]
    assert len(smaller) < math.ceil(wanted)


@given(numbers, st.floats(1, 99))
def test_the_interval_of_a_percentile_contains_it(values, q):
    low, high = percentile_interval(values, q)
    assert low <= percentile(values, q) <= high


def test_the_interval_of_a_median_has_the_tabled_ranks():
    # Conover, Practical Nonparametric Statistics: for n = 100 the 95 % ranks are 40 and 61.
    values = list(range(1, 101))
    assert percentile_interval(values, 50) == (40, 61)


@pytest.mark.parametrize("q", [0, -1, 101])
def test_a_percentile_outside_its_range_is_refused(q):
    with pytest.raises(ValueError, match="lies in"):
        percentile([1.0], q)


def test_nothing_is_not_measured():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    with pytest.raises(ValueError, match="1 or more"):
        time_shuffled({"nothing": lambda: None}, 0)


class Clock:
    """Time that passes only by sleeping, and in calls."""

    def __init__(self):
        self.now = 100.0

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(measure, "perf_counter", lambda: found.now)
    monkeypatch.setattr(measure, "perf_counter_ns", lambda: round(found.now * 1e9))
    monkeypatch.setattr(measure, "sleep", found.pass_by)
    return found


def test_what_is_done_before_a_call_is_not_timed_and_done_each_time(clock):
    calls = {"a": lambda: clock.pass_by(0.5)}
    found = time_shuffled(calls, 4, before={"a": lambda: clock.pass_by(2.0)})
    assert found["a"].seconds == (0.5,) * 4


def test_each_counted_call_follows_one_of_its_own_kind():
    calls = []
    found = time_shuffled({n: lambda n=n: calls.append(n) for n in "abc"}, 20, warm_up=3, block=5)
    assert [len(samples) for samples in found.values()] == [20, 20, 20]
    assert len(calls) == 3 * 3 + 3 * 4 * 6  # a warm-up; four blocks of five, each with one before
    blocks = [calls[at : at + 6] for at in range(9, len(calls), 6)]
    assert all(len(set(block)) == 1 for block in blocks)


@pytest.mark.parametrize(("repeats", "block"), [(20, 1), (100, 3), (300, 10), (5_000, 10)])
def test_there_are_enough_blocks_for_an_interval(repeats, block):
    found = time_shuffled({"a": lambda: None}, repeats)["a"]
    assert (found.block, len(found) >= repeats) == (block, True)


def test_the_interval_of_blocks_is_wider_than_that_of_independent_samples():
    alike = tuple(float(block) for block in range(20) for _ in range(10))
    low, high = Samples("independent", alike).interval(50)
    wide_low, wide_high = Samples("blocks", alike, 10).interval(50)
    assert wide_high - wide_low > high - low
    assert wide_low <= Samples("blocks", alike).median <= wide_high


@pytest.mark.parametrize("blocks", [1, 2])
def test_of_too_few_blocks_the_values_are_taken_one_by_one(blocks):
    values = tuple(float(number) for number in range(1, 10 * blocks + 1))
    few, halved = Samples("few", values, 10), Samples("halved", tuple(v / 2 for v in values), 10)
    assert few.interval(50) == percentile_interval(values, 50)
    low, high = speed_up_interval(few, halved)
    assert low < 2 < high


def test_the_interval_of_a_speed_up_contains_it_and_is_reproducible():
    slow = Samples("slow", tuple(1 + i / 100 for i in range(50)))
    fast = Samples("fast", tuple(0.5 + i / 100 for i in range(50)))
    low, high = speed_up_interval(slow, fast)
    assert low <= speed_up(slow, fast) <= high
    assert (low, high) == speed_up_interval(slow, fast)


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(measure).failed == 0


def test_a_moment_says_when_how_long_and_from_where():
    before = time.time()
    one = moment(lambda: time.sleep(0.01) or "cache")
    assert before <= one.at <= time.time()
    assert 0.01 <= one.seconds < 5
    assert one.source == "cache"


def test_a_moment_raises_what_was_not_foreseen():
    with pytest.raises(ZeroDivisionError):
        moment(lambda: str(1 / 0))


def test_calls_on_a_schedule_keep_their_order_and_none_is_early(clock):
    made = on_schedule([0.0, 0.01, 0.03], lambda n: (n, round(clock.now, 3)))
    assert made == [(0, 100.0), (1, 100.01), (2, 100.03)]


def test_calls_that_fall_due_while_one_hangs_are_timed_from_when_they_were_due(clock):
    def call(number):
        clock.pass_by(1.0 if number == 2 else 0.001)  # the third one hangs for a second
        return "cache"

    times = [n / 10 for n in range(20)]
    found = moments_on_schedule(times, call)
    waits = [round(m.seconds, 3) for m in found]
    # Due at 0.2 and answered at 1.2; the next ones in a row behind it, each a millisecond later.
    behind = [round(1.0 - n / 10 + n * 0.001, 3) for n in range(1, 10)]
    assert waits[:2] == [0.001, 0.001]
    assert waits[2] == 1.0
    assert waits[3:12] == behind
    assert waits[13:] == [0.001] * 7
    starts = [m.at - found[0].at for m in found]
    assert starts == pytest.approx(times, abs=1e-5)


def test_a_failure_on_a_schedule_is_noted_with_its_wait(clock):
    def gone(_):
        clock.pass_by(0.25)
        raise ServiceUnreachableError("no answer")

    found = moments_on_schedule([0.0, 0.1], gone)
    assert [(m.source, round(m.seconds, 2)) for m in found] == [("error", 0.25), ("error", 0.4)]
