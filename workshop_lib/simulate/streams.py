"""Seeded streams of requests: key numbers from 0, the same for the same seed on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = (5**0.5 - 1) / 2
"""Steps of this share of a circle come back near an old place as late as steps can."""


def zipf_probabilities(keys: int, exponent: float) -> list[float]:
    """How likely each key is: key k with a weight of 1 / (k + 1) ** exponent (Zipf 1949).

    Args:
        keys: how many there are; key 0 is the hottest.
        exponent: 0 makes all alike; web traffic has been measured at 0.64 to 0.83 (Breslau, Cao,
            Fan, Phillips and Shenker 1999).

    Returns:
        One probability a key; together they are 1.

    Raises:
        ValueError: no keys.

    >>> [round(p, 3) for p in zipf_probabilities(3, 1.0)]
    [0.545, 0.273, 0.182]
    """
    if keys < 1:
        raise ValueError(f"requests need at least 1 key to ask for; {keys} is too few")
    weights = np.arange(1, keys + 1, dtype=float) ** -exponent
    shares: list[float] = (weights / weights.sum()).tolist()
    return shares


def zipf_stream(requests: int, keys: int, exponent: float = 1.0, seed: int = 0) -> list[int]:
    """Independent requests whose popularity follows `zipf_probabilities`.

    Returns:
        As many key numbers as requests, each from 0 (the hottest) to keys - 1.

    Raises:
        ValueError: requests below 0, or no keys.

    >>> zipf_stream(8, keys=100, exponent=1.0, seed=1)
    [7, 77, 0, 76, 2, 4, 40, 4]
    """
    stream: list[int] = _zipf(requests, keys, exponent, np.random.default_rng(seed)).tolist()
    return stream


def scan_stream(
    requests: int, keys: int, exponent: float = 1.0, *, share: float = 0.2, seed: int = 0
) -> list[int]:
    """A Zipf stream with a scan mixed in: a report that reads one key after another.

    It begins with the key that is asked for least, as a report on old records would, and starts
    again when it has read all.

    Args:
        requests: how many, the scan's included.
        keys: how many there are; the scan visits them all.
        exponent: of the requests that are not the scan's.
        share: the probability that a request is the scan's, 0 to 1.
        seed: of all that is random here.

    Returns:
        As many key numbers as requests.

    >>> scan_stream(7, keys=5, share=1.0)
    [4, 3, 2, 1, 0, 4, 3]
    """
    rng = np.random.default_rng(seed)
    stream = _zipf(requests, keys, exponent, rng)
    scanned = rng.random(requests) < share
    stream[scanned] = keys - 1 - np.arange(np.count_nonzero(scanned)) % keys
    mixed: list[int] = stream.tolist()
    return mixed


def shifting_stream(
    requests: int, keys: int, exponent: float = 1.0, *, period: int = 10_000, seed: int = 0
) -> list[int]:
    """A Zipf stream whose hot set moves to other keys every `period` requests.

    All keys stand on a circle, which turns by the golden section of itself each time: what was hot
    cools down, and no key is hot again soon.

    Returns:
        As many key numbers as requests; within a period they are as likely as in `zipf_stream`.

    >>> shifting_stream(6, keys=10, exponent=50, period=2)
    [0, 0, 6, 6, 2, 2]
    """
    ranks = _zipf(requests, keys, exponent, np.random.default_rng(seed))
    turns = np.arange(requests) // period
    stream: list[int] = ((ranks + turns * max(round(GOLDEN * keys), 1)) % keys).tolist()
    return stream


def poisson_times(rate_per_s: float, seconds: float, seed: int = 0) -> list[float]:
    """When the events of a Poisson process happen: at random, independent of one another.

    The number of them is Poisson; given it, their times are uniform (Kingman, "Poisson Processes",
    1993). Two processes that are to know nothing of each other, such as requests and updates, need
    different seeds.

    Returns:
        Ascending times in seconds, from 0 up to `seconds`; about rate_per_s · seconds of them.

    >>> [round(t, 1) for t in poisson_times(0.5, seconds=10)]
    [6.1, 8.1, 9.1]
    """
    rng = np.random.default_rng(seed)
    times: list[float] = np.sort(rng.random(rng.poisson(rate_per_s * seconds)) * seconds).tolist()
    return times


def _zipf(requests: int, keys: int, exponent: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """The ranks drawn, by inversion of the distribution function."""
    up_to = np.cumsum(zipf_probabilities(keys, exponent))
    drawn = np.searchsorted(up_to, rng.random(requests), side="right")
    return np.minimum(drawn, keys - 1)  # rounding may leave the last sum just below 1
