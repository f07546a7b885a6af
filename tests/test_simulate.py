import doctest
import math
from collections import Counter
from functools import cache
from importlib import import_module
from itertools import pairwise
from statistics import fmean, stdev

import cachetools
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from workshop_lib import simulate
from workshop_lib.simulate import (
    hits,
    poisson_times,
    replay,
    stack_distances,
    ttl_outcome,
    zipf_stream,
)

traces = st.lists(st.integers(0, 12), max_size=150)
capacities = st.integers(1, 14)
policies = st.sampled_from(list(simulate.POLICIES))
unhurried = settings(deadline=None, max_examples=40)


@pytest.mark.parametrize("module", ["streams", "distances", "eviction", "theory"])
def test_the_examples_in_the_docstrings_are_true(module):
    found = doctest.testmod(import_module(f"workshop_lib.simulate.{module}"))
    assert found.attempted >= 2
    assert found.failed == 0


# --- streams


def test_a_zipf_stream_asks_for_each_key_as_often_as_its_probability_says():
    n = 100_000
    seen = Counter(zipf_stream(n, 50, 0.9, seed=3))
    for key, p in enumerate(simulate.zipf_probabilities(50, 0.9)):
        assert abs(seen[key] - n * p) < 4 * math.sqrt(n * p * (1 - p)), key


@pytest.mark.parametrize("make", [zipf_stream, simulate.scan_stream, simulate.shifting_stream])
def test_a_stream_is_reproducible_by_its_seed_and_stays_among_its_keys(make):
    stream = make(5_000, 40, 0.8, seed=7)
    assert stream == make(5_000, 40, 0.8, seed=7) != make(5_000, 40, 0.8, seed=8)
    assert len(stream) == 5_000
    assert set(stream) == set(range(40))


def test_a_scan_visits_every_key_in_turn_and_makes_up_its_share_of_the_requests():
    only_key_0_is_hot = 60.0
    stream = simulate.scan_stream(20_000, 100, only_key_0_is_hot, share=0.3, seed=1)
    scanned = [key for key in stream if key]
    assert scanned == [99 - i % 99 for i in range(len(scanned))]  # the coldest first
    assert len(scanned) / 20_000 == pytest.approx(0.3, abs=0.015)


@pytest.mark.parametrize("keys", [2, 3, 10, 1_000])
def test_the_hot_key_moves_every_period_and_is_not_hot_again_at_once(keys):
    stream = simulate.shifting_stream(500, keys, 60.0, period=100)
    hot = [set(stream[start : start + 100]) for start in range(0, 500, 100)]
    assert all(len(keys_of_period) == 1 for keys_of_period in hot)
    assert all(before != after for before, after in pairwise(hot))


def test_poisson_times_ascend_and_are_as_many_and_as_variable_as_they_should_be():
    times = poisson_times(50, 1_000, seed=5)
    assert times == sorted(times) == poisson_times(50, 1_000, seed=5)
    assert 0 <= times[0] <= times[-1] <= 1_000
    per_second = Counter(math.floor(t) for t in times)
    counts = [per_second[second] for second in range(1_000)]
    assert fmean(counts) == pytest.approx(50, abs=4 * math.sqrt(50 / 1_000))
    assert stdev(counts) ** 2 == pytest.approx(50, rel=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: zipf_stream(5, 0), "at least 1 key"),
        (lambda: replay([1], 1, "mru"), "'mru'.*belady, fifo, lfu, lru, random, sampled-lru"),
        (lambda: replay([1], 0, "lru"), "at least 1 entry"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- who stays in a full cache


@pytest.mark.parametrize(
    ("policy", "cache_class"),
    [
        ("lru", cachetools.LRUCache),
        ("lfu", cachetools.LFUCache),
        ("fifo", cachetools.FIFOCache),
    ],
)
@unhurried
@given(traces, capacities)
def test_hits_are_those_of_cachetools(policy, cache_class, trace, capacity):
    cached, expected = cache_class(maxsize=capacity), []
    for key in trace:
        expected.append(key in cached)
        if key in cached:
            cached[key]
        else:
            cached[key] = None
    assert list(hits(trace, capacity, policy)) == expected


@unhurried
@given(traces, capacities, policies, st.integers(0, 3))
def test_with_room_for_all_keys_each_is_missed_once_and_a_seed_makes_it_the_same_again(
    trace, capacity, policy, seed
):
    assert sum(hits(trace, 13, policy, seed=seed)) == len(trace) - len(set(trace))
    found = list(hits(trace, capacity, policy, seed=seed))
    assert found == list(hits(trace, capacity, policy, seed=seed))
    assert replay(trace, capacity, policy, seed=seed) == sum(found) / max(len(trace), 1)


@unhurried
@given(st.lists(st.integers(0, 4), max_size=11), st.integers(1, 3))
def test_belady_is_as_good_as_trying_every_eviction(trace, capacity):
    @cache
    def best(at, held):
        if at == len(trace):
            return 0
        if trace[at] in held:
            return 1 + best(at + 1, held)
        if len(held) < capacity:
            return best(at + 1, held | {trace[at]})
        return max(best(at + 1, held - {out} | {trace[at]}) for out in held)

    ratio = best(0, frozenset()) / max(len(trace), 1)
    assert replay(trace, capacity, "belady") == ratio


def curve(stream, sizes, policy):
    return [replay(stream, size, policy) for size in sizes]


@unhurried
@given(traces)
def test_a_stack_distance_counts_the_distinct_keys_since_the_last_request(trace):
    sizes = [3 * key % 7 for key in range(13)]
    counted, weighed = stack_distances(trace), stack_distances(trace, sizes)
    for now, key in enumerate(trace):
        earlier = [at for at in range(now) if trace[at] == key]
        between = set(trace[earlier[-1] : now]) if earlier else set()
        assert counted[now] == len(between)
        assert weighed[now] == sum(sizes[one] for one in between)


def test_a_sample_of_keys_has_nearly_the_curve_of_the_whole_trace():
    stream, rate, sizes = zipf_stream(200_000, 20_000, 0.9, seed=8), 0.1, [500, 2_000, 8_000]
    for policy in ("lru", "lfu"):
        whole = curve(stream, sizes, policy)
        for seed in range(3):
            small = np.array(stream)[simulate.sample_keys(stream, rate, seed)].tolist()
            ratios = curve(small, [round(s * rate) for s in sizes], policy)
            adjusted = simulate.adjust_ratios(ratios, len(small), len(stream), rate)
            assert adjusted == pytest.approx(whole, abs=0.03)


def test_valkeys_sampling_comes_close_to_lru_and_stays_above_chance():
    stream = zipf_stream(60_000, 5_000, 0.9, seed=4)
    ratio = {policy: replay(stream, 500, policy) for policy in simulate.POLICIES}
    assert ratio["sampled-lru"] == pytest.approx(ratio["lru"], abs=0.01)
    assert ratio["random"] + 0.01 < ratio["sampled-lru"]


# --- a whole trace with one TTL


ttls = st.integers(0, 60)


@st.composite
def histories(draw):
    """Requests in order, each with a time, a key and whether it writes."""
    steps = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 4), st.booleans())))
    times = np.cumsum([0, *(gap for gap, _, _ in steps)])[1:]
    return times, [key for _, key, _ in steps], [writes for _, _, writes in steps]


@unhurried
@given(histories(), ttls, st.booleans())
def test_a_trace_with_a_ttl_is_answered_as_request_by_request(history, ttl, delete_on_write):
    held, changed, expected = {}, {}, []
    for now, key, writes in zip(*history, strict=True):
        if writes:
            changed[key] = True
            if delete_on_write:
                held.pop(key, None)
        elif now < held.get(key, 0):
            expected.append((True, changed[key] and not delete_on_write))
        else:
            held[key], changed[key] = now + ttl, False
            expected.append((False, False))
    found = ttl_outcome(*history, ttl, delete_on_write=delete_on_write)
    assert list(zip(found.hit.tolist(), found.stale.tolist(), strict=True)) == expected


# --- theory


@pytest.mark.parametrize("exponent", [0.0, 0.9, 1.2])
@pytest.mark.parametrize("capacity", [20, 800])
def test_ches_approximation_is_within_two_points_of_a_replay(exponent, capacity):
    stream = zipf_stream(40_000, 1_000, exponent, seed=11)
    warm = list(hits(stream, capacity, "lru"))[10_000:]
    expected = simulate.che_lru_hit_ratio(simulate.zipf_probabilities(1_000, exponent), capacity)
    assert fmean(warm) == pytest.approx(expected, abs=0.02)


RUNS = 40


def mean_of_runs(values):
    """The mean of independent runs and four standard errors of it."""
    return fmean(values), 4 * stdev(values) / math.sqrt(RUNS)


@pytest.mark.parametrize(("update_rate", "ttl", "rate"), [(0.02, 30, 1.0), (0.4, 10, 0.2)])
def test_hits_and_stale_answers_by_formula_are_within_four_standard_errors_of_a_replay(
    update_rate, ttl, rate
):
    answered, stale = [], []
    for seed in range(RUNS):
        reads = [(time, False) for time in poisson_times(rate, 15_000 / rate, seed)]
        updates = poisson_times(update_rate, 15_000 / rate, seed + 1_000)
        times, writes = zip(*sorted(reads + [(time, True) for time in updates]), strict=True)
        found = ttl_outcome(times, np.zeros(len(times)), writes, ttl)
        answered.append(found.hit.mean())
        stale.append(found.stale.mean())
    for values, formula in (
        (answered, simulate.ttl_hit_ratio(rate, ttl)),
        (stale, simulate.stale_share(update_rate, ttl, rate)),
    ):
        mean, margin = mean_of_runs(values)
        assert margin < 0.01
        assert formula == pytest.approx(mean, abs=margin)


def test_a_row_that_never_changes_is_never_stale():
    assert simulate.stale_share(0, 30, 1) == 0
    assert simulate.stale_share(1e-9, 30, 1) == pytest.approx(1.5e-8 * 30 / 31)


# --- early refresh


def test_the_chance_of_an_early_refresh_falls_exponentially_with_the_time_left():
    draws = [(i + 1) / 1_000 for i in range(1_000)]
    for left, cost, beta in [(1, 1, 1), (3, 1, 1), (3, 1, 2), (0.1, 0.5, 1), (5, 2, 0.5)]:
        yes = sum(simulate.should_refresh_early(100 - left, 100, cost, beta, u) for u in draws)
        assert yes == pytest.approx(1_000 * math.exp(-left / (cost * beta)), abs=1)


# --- break-even


def test_at_the_break_even_a_cache_is_as_fast_as_the_database_alone():
    for hit, fill, database in [(1, 1, 9), (0.08, 0.08, 0.3), (2, 0, 5), (0, 0, 3)]:
        ratio = simulate.break_even(hit, fill, database)
        mean = ratio * hit + (1 - ratio) * (hit + database + fill)
        assert mean == pytest.approx(database)
    assert simulate.break_even(hit=2, fill=0, database=2) is None
