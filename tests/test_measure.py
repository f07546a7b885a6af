import math
import time
from fractions import Fraction

import pytest
from hypothesis import given, strategies as st

from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.measure import (
    Samples,
    moment,
    moments_on_schedule,
    on_schedule,
    percentile,
    percentile_interval,
    readable,
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


def test_the_rank_of_a_percentile_is_exact():
    # In floating point, 7 / 100 * 100 is more than 7.
    for n in range(1, 1_001, 49):
        values = range(1, n + 1)
        wrong = [q for q in range(1, 101) if percentile(values, q) != -(-q * n // 100)]
        assert wrong == [], n


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


def test_only_the_repeats_are_counted_and_neither_warm_up_nor_the_first_of_a_block():
    calls = {"a": 0, "b": 0}

    def call(name):
        calls[name] += 1

    found = time_shuffled({"a": lambda: call("a"), "b": lambda: call("b")}, 20, warm_up=3, block=10)
    # 20 counted in two blocks, each with one uncounted call before it
    assert calls == {"a": 25, "b": 25}
    assert [len(samples) for samples in found.values()] == [20, 20]


def test_each_counted_call_follows_one_of_its_own_kind():
    calls = []
    time_shuffled({n: lambda n=n: calls.append(n) for n in "abc"}, 20, warm_up=0, block=5)
    assert len(calls) == 3 * 4 * 6  # four blocks of five, each with one call before it
    blocks = [calls[at : at + 6] for at in range(0, len(calls), 6)]
    assert all(len(set(block)) == 1 for block in blocks)


@pytest.mark.parametrize(("repeats", "block"), [(20, 1), (100, 3), (300, 10), (5_000, 10)])
def test_there_are_enough_blocks_for_an_interval(repeats, block):
    found = time_shuffled({"a": lambda: None}, repeats)["a"]
    assert (found.block, len(found) >= repeats) == (block, True)


def test_what_is_done_before_a_call_is_not_timed_and_done_each_time():
    done = []
    found = time_shuffled(
        {"a": lambda: done.append("call")},
        4,
        warm_up=1,
        block=4,
        before={"a": lambda: time.sleep(0.01)},
    )
    assert done == ["call"] * 6  # the warm-up, the uncounted first of the block, four counted
    assert min(found["a"].seconds) < 0.01


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


def test_a_speed_up_compares_medians():
    slow, fast = Samples("slow", (4.0, 4.0, 100.0)), Samples("fast", (1.0, 1.0, 1.0))
    assert speed_up(slow, fast) == 4.0


def test_the_interval_of_a_speed_up_contains_it_and_is_reproducible():
    slow = Samples("slow", tuple(1 + i / 100 for i in range(50)))
    fast = Samples("fast", tuple(0.5 + i / 100 for i in range(50)))
    low, high = speed_up_interval(slow, fast)
    assert low <= speed_up(slow, fast) <= high
    assert (low, high) == speed_up_interval(slow, fast)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0000005, "0.5 µs"), (0.00123, "1.23 ms"), (1.5, "1.50 s"), (0, "0.0 µs")],
)
def test_durations_are_written_in_a_unit_that_fits(seconds, text):
    assert readable(seconds) == text


def test_a_moment_says_when_how_long_and_from_where():
    before = time.time()
    one = moment(lambda: time.sleep(0.01) or "cache")
    assert before <= one.at <= time.time()
    assert 0.01 <= one.seconds < 5
    assert (one.source, one.end) == ("cache", one.at + one.seconds)


def test_a_moment_notes_a_foreseen_failure_and_raises_any_other():
    def gone():
        raise ServiceUnreachableError("no answer")

    assert moment(gone).source == "error"
    with pytest.raises(ZeroDivisionError):
        moment(lambda: str(1 / 0))


def test_calls_on_a_schedule_keep_their_order_and_none_is_early():
    started = time.perf_counter()
    planned = [0.0, 0.01, 0.03]
    made = on_schedule(planned, lambda n: (n, time.perf_counter() - started))
    assert [n for n, _ in made] == [0, 1, 2]
    assert all(at >= time for (_, at), time in zip(made, planned, strict=True))


class Clock:
    """Time that passes only by sleeping, and in calls."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def test_calls_that_fall_due_while_one_hangs_are_timed_from_when_they_were_due():
    clock = Clock()

    def call(number):
        clock.pass_by(1.0 if number == 2 else 0.001)  # the third one hangs for a second
        return "cache"

    times = [n / 10 for n in range(20)]
    found = moments_on_schedule(times, call, clock=clock, sleep=clock.pass_by)
    waits = [round(m.seconds, 3) for m in found]
    # Due at 0.2 and answered at 1.2; the next ones in a row behind it, each a millisecond later.
    behind = [round(1.0 - n / 10 + n * 0.001, 3) for n in range(1, 10)]
    assert waits[:2] == [0.001, 0.001]
    assert waits[2] == 1.0
    assert waits[3:12] == behind
    assert waits[13:] == [0.001] * 7
    starts = [m.at - found[0].at for m in found]
    assert starts == pytest.approx(times, abs=1e-5)


def test_a_call_that_was_made_late_has_waited_since_it_was_due():
    clock = Clock()
    one = moment(lambda: clock.pass_by(0.5) or "database", 97.0, clock=clock)
    assert (one.seconds, one.source) == (3.5, "database")


def test_a_failure_on_a_schedule_is_noted_with_its_wait():
    clock = Clock()

    def gone(_):
        clock.pass_by(0.25)
        raise ServiceUnreachableError("no answer")

    found = moments_on_schedule([0.0, 0.1], gone, clock=clock, sleep=clock.pass_by)
    assert [(m.source, round(m.seconds, 2)) for m in found] == [("error", 0.25), ("error", 0.4)]
