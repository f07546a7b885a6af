"""Hit ratios of long traces: stack distances, samples of keys and TTLs, with numpy (pure).

Ten million requests take seconds. A trace is an array of key numbers, 0 or more, in order of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints: TypeAlias = NDArray[np.integer[Any]]


class TtlOutcome(NamedTuple):
    """For each read, in order: whether the cache answered, and whether with an old answer."""

    hit: NDArray[np.bool_]
    stale: NDArray[np.bool_]


def stack_distances(keys: ArrayLike, key_bytes: ArrayLike | None = None) -> NDArray[np.int64]:
    """How far down the list of recently used keys each request finds its own.

    1 is the key of the request before; a request hits in an LRU cache exactly if its distance is at
    most the capacity (Mattson, Gecsei, Slutz and Traiger 1970).

    The keys between two requests for one are those that are new there: whose own last request is
    not after the first of the two (Bennett and Kruskal 1975). So the distance takes counting, for
    each request, the earlier ones with an earlier last request; that is done for all of them bit by
    bit, as a wavelet tree would (Grossi, Gupta and Vitter 2003).

    Args:
        keys: the key number of each request.
        key_bytes: the size of each key's entry, below 4 GiB, by key number. Then a distance is the
            bytes of the keys down to its own, and the capacity that it needs is one in bytes.

    Returns:
        One distance a request; 0 where the key comes for the first time.

    >>> stack_distances([7, 8, 8, 7]).tolist()
    [0, 0, 1, 2]
    >>> stack_distances([0, 1, 1, 0], key_bytes=[10, 500]).tolist()
    [0, 0, 500, 510]
    """
    numbers = np.asarray(keys, dtype=np.int32)
    last = _last_requests(numbers)
    again = np.flatnonzero(last >= 0).astype(np.int32)
    if key_bytes is None:
        weights = np.ones(len(numbers), np.uint32)
    else:
        weights = np.asarray(key_bytes, np.uint32)[numbers]
    distances = np.zeros(len(numbers), np.int64)
    distances[again] = _weight_below(_ranks(last[again], len(numbers)), weights[again])
    distances[again] += np.cumsum(np.where(last < 0, weights, 0), dtype=np.int64)[again]
    distances[again] -= np.cumsum(weights, dtype=np.int64)[last[again]]
    distances[again] += weights[again]
    return distances


def hit_ratios(distances: NDArray[np.int64], capacities: ArrayLike) -> NDArray[np.float64]:
    """The hit ratio of an LRU cache that begins empty, for each capacity.

    Args:
        distances: as `stack_distances` returns them; 0 is a miss, whatever the capacity.
        capacities: in the unit of the distances.

    >>> hit_ratios(stack_distances([1, 2, 1, 3, 1]), [1, 2, 3]).tolist()
    [0.0, 0.4, 0.4]
    """
    found = np.sort(distances[distances > 0])
    return np.searchsorted(found, capacities, side="right") / max(len(distances), 1)


def sample_keys(keys: ArrayLike, rate: float, seed: int = 0) -> NDArray[np.bool_]:
    """Choose keys at random, and with each of them all of its requests (SHARDS, fixed rate).

    Such a sample in a cache of `rate` times the size has nearly the hit ratio of the whole; see
    Waldspurger, Park, Garthwaite and Ahmad 2015, and for policies other than LRU Waldspurger,
    Saemundsson, Ahmad and Park 2017.

    Returns:
        Whether each request is in the sample.

    >>> sample_keys([0, 1, 2, 1, 0], rate=0.5, seed=1).tolist()
    [False, False, True, False, False]
    """
    numbers = np.asarray(keys, dtype=np.int64)
    chosen = np.random.default_rng(seed).random(numbers.max(initial=-1) + 1) < rate
    sampled: NDArray[np.bool_] = chosen[numbers]
    return sampled


def adjust_ratios(
    ratios: Sequence[float], sampled: int, requests: int, rate: float
) -> NDArray[np.float64]:
    """Hit ratios of a sample, corrected for the hot keys that it has by chance, or has not.

    Requests that are missing, by the rate, or too many are taken for hits, as those for hot keys
    are ("SHARDS-adj", section 3.2 of the paper of 2015).

    >>> adjust_ratios([0.5], sampled=900, requests=10_000, rate=0.1).tolist()
    [0.55]
    """
    expected = requests * rate
    hits = np.asarray(ratios, dtype=float) * sampled + expected - sampled
    return np.clip(hits / expected, 0, 1)


def ttl_outcome(
    seconds: ArrayLike,
    keys: ArrayLike,
    writes: ArrayLike,
    ttl_s: float,
    *,
    delete_on_write: bool = False,
) -> TtlOutcome:
    """Send a trace to a cache that begins empty, has room for all, and loads in no time.

    The TTL counts from the fill, and a hit does not renew it. An answer is stale if its key was
    written between its fill and the read. What stands first in the trace comes first.

    Args:
        seconds: of each request, ascending.
        keys: the key number of each request.
        writes: whether each request changes the row; the others are reads.
        ttl_s: how long an entry lives, seconds; with 0 each read is a miss.
        delete_on_write: a write deletes the entry, so that nothing is stale.

    >>> ttl_outcome([0, 6, 9, 10], [7, 7, 7, 7], [False, True, False, False], ttl_s=10).hit.tolist()
    [False, True, False]
    """
    numbers, times = np.asarray(keys, dtype=np.int64), np.asarray(seconds, dtype=float)
    written, n = np.asarray(writes, dtype=bool), len(times)
    # Key by key, each in order of time: the place in such a list is the key's number and the
    # request's, as one number.
    places = np.flatnonzero(~written)
    order = np.argsort(numbers[places], kind="stable")
    places = places[order]
    reads = numbers[places] * n + places
    changes = np.sort((numbers * n + np.arange(n))[written])
    ends = np.searchsorted(times, times[places] + ttl_s)
    next_fill = np.searchsorted(reads, numbers[places] * n + ends)
    next_fill = np.maximum(next_fill, np.arange(1, len(reads) + 1))  # also where the TTL is 0
    seen = np.searchsorted(changes, reads)
    if delete_on_write and len(changes):
        after = np.searchsorted(reads, changes)
        next_fill = np.minimum(next_fill, np.append(after, len(reads))[seen])
    filled = np.zeros(len(reads), dtype=bool)
    steps, at = next_fill.data, 0
    while at < len(reads):  # past the last read of a key comes the first of the next
        filled[at] = True
        at = steps[at]
    fill_of = np.flatnonzero(filled)[np.cumsum(filled) - 1]
    hit, stale = np.empty_like(filled), np.empty_like(filled)
    hit[order], stale[order] = ~filled, seen > seen[fill_of]
    return TtlOutcome(hit, stale)


def _last_requests(keys: Ints) -> NDArray[np.int32]:
    """Where each request's key was requested before; -1 where it was not."""
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    last = np.full(len(keys), -1, np.int32)
    last[order[1:][same]] = order[:-1][same]
    return last


def _ranks(places: NDArray[np.int32], end: int) -> NDArray[np.uint32]:
    """Which of these different places, below `end`, is the lowest (0), the next (1), and so on."""
    there = np.zeros(end, np.uint32)
    there[places] = 1
    return (np.cumsum(there, dtype=np.uint32) - np.uint32(1))[places]


def _weight_below(ranks: NDArray[np.uint32], weights: Ints) -> NDArray[np.int64]:
    """For each of the ranks 0 to n - 1, how much the earlier ones that are lower weigh together.

    Level by level, the ranks stand in blocks of those that differ in their lowest bits only, each
    block in its old order. Of two ranks, the highest bit in which they differ says which is lower:
    in that level they are in one block, and one has the bit.
    """
    found = np.zeros(len(ranks), np.int64)
    left, half = ranks, 1 << max(len(ranks) - 1, 0).bit_length() >> 1
    while half:
        upper = (left & np.uint32(half)) != 0
        places = np.flatnonzero(upper)
        # Each block but the last has `half` of either kind.
        block = np.arange(len(places)) // half
        sums = np.cumsum(np.where(upper, 0, weights), dtype=np.int64)
        found[left[upper]] += sums[places] - np.append(0, sums[2 * half - 1 :: 2 * half])[block]
        left, weights = _part(left, upper, half), _part(weights, upper, half)
        half //= 2
    below: NDArray[np.int64] = found[ranks]
    return below


def _part(values: Any, upper: NDArray[np.bool_], half: int) -> Any:
    """In each block of 2 · half, those without the bit first, then those with it."""
    parted = np.empty_like(values)
    whole = len(values) // (2 * half) * 2 * half
    blocks = parted[:whole].reshape(-1, 2, half)
    blocks[:, 0] = values[:whole][~upper[:whole]].reshape(-1, half)
    blocks[:, 1] = values[:whole][upper[:whole]].reshape(-1, half)
    rest, above = values[whole:], upper[whole:]
    parted[whole:] = np.concatenate([rest[~above], rest[above]])
    return parted
