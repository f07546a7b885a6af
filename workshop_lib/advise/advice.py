"""Which statements a cache is worth: what it would save of each, and why to leave the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from workshop_lib.advise.sql_shape import Shape, shape
from workshop_lib.advise.statistics_file import Statistic
from workshop_lib.costs import HOURS_A_MONTH, Prices, Workload, monthly_cost
from workshop_lib.errors import DataError
from workshop_lib.simulate.theory import break_even, stale_share, ttl_hit_ratio

CACHE, MEASURE, LEAVE = VERDICTS = ("cache it", "measure first", "leave it")
SURE = 10.0
"""The assumed number of parameter values is trusted within this factor, either way."""
SUMS = ("waiting_s", "database_s", "dpu", "usd", "requests_usd", "cached_gb")
MIN_CALLS = 10
"""Fewer calls say nothing of how often a statement is called."""
MONTH_S = HOURS_A_MONTH * 3_600
MAX_ITEM_BYTES = 512 * 1024**2
"""Valkey stores no larger value."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the statistics do not say; all above 0.

    Attributes:
        ttl_s: how long an answer may be used, seconds.
        distinct: how many different parameter values a statement sees, all equally often.
        days: that the statistics cover; None: the file says it.
        calls_per_s: of a statement whose file does not tell how often it is called.
        cache_ms: of a look into the cache, or of filling it, the network included.
        network_ms: of the way to the database and back, which its statistics leave out.
        row_bytes: of a row of an answer.

    """

    ttl_s: float = 60.0
    distinct: float = 1_000.0
    days: float | None = None
    calls_per_s: float = 1.0
    cache_ms: float = 0.5
    network_ms: float = 0.5
    row_bytes: float = 200.0


@dataclass(frozen=True, slots=True)
class Gain:
    """What a cache would do for one statement. What is below 0 would be lost.

    Attributes:
        keys: entries that it would need, one for each combination of parameter values.
        hit_ratio: to be expected.
        needed: the hit ratio from which on users wait less; None: even a hit is no faster.
        most_keys: up to so many keys the hit ratio is at least that.
        waiting_s: of users, saved a month, seconds.
        database_s: of the database's work, saved a month, seconds.
        dpu: saved a month; None if the file has none.
        usd: saved a month: DPU less the cache's requests, without its memory; None as `dpu`.
        requests_usd: what the cache's requests cost a month.
        cached_gb: memory of its entries.
        stale: at most this share of the answers is older than the last change: so many would be
            if each statement in the file that changes one of its tables changed all its answers.

    """

    keys: float
    hit_ratio: float
    needed: float | None
    most_keys: float
    waiting_s: float
    database_s: float
    dpu: float | None
    usd: float | None
    requests_usd: float
    cached_gb: float
    stale: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do about one statement.

    Attributes:
        statement: its text, without values.
        verdict: one of VERDICTS.
        reason: why.
        calls_per_s: mean over the time that the statistics cover.
        mean_ms: of the database's work for one call.
        share: of the database's time that all statements of the file took, 0 to 1.
        gain: None if its answer cannot be cached.

    """

    statement: str
    verdict: str
    reason: str
    calls_per_s: float
    mean_ms: float
    share: float
    gain: Gain | None


@dataclass(frozen=True, slots=True)
class Report:
    """All advice.

    Attributes:
        statements: first what saves most of users' waiting; last what to leave, by its share.
        assumptions: what it is built on.
        hidden: how many more statements there are, whose text the file does not show.
        total: sums of attributes of `Gain`, by name, over what is not to leave; None if one of them
            is unknown.
        memory_usd: what the cache's memory costs a month, for all that is not to leave.
        region, as_of: of the prices.

    """

    statements: tuple[Advice, ...]
    assumptions: Assumptions
    hidden: int
    total: dict[str, float | None]
    memory_usd: float
    region: str
    as_of: str


def advise(
    statistics: Sequence[Statistic], assumptions: Assumptions, prices: Prices, hidden: int = 0
) -> Report:
    """What to do about each statement.

    Args:
        statistics: each statement once.
        assumptions: what they do not say.
        prices: by what DPU and the cache are charged.
        hidden: how many more statements there are.

    Raises:
        DataError: how many days the statistics cover is not known.

    """
    known = [(one, shape(one.query), _calls_per_s(one, assumptions)) for one in statistics]
    written = Counter[str]()
    for _, text, rate in known:
        written.update(dict.fromkeys(text.changes, rate))
    busy = sum(rate * one.mean_ms for one, _, rate in known)
    found = []
    for one, text, rate in known:
        writes = sum(written[table] for table in text.reads)
        gain = None
        if not text.leave:
            gain = _gain(one, text, rate, writes, given=assumptions, prices=prices)
        verdict, reason = _verdict(text, gain, one.calls, rate, writes)
        share = rate * one.mean_ms / busy if busy else 0.0
        found.append(Advice(text.text, verdict, reason, rate, one.mean_ms, share, gain))
    found.sort(key=_rank)
    gains = [one.gain for one in found if one.gain and one.verdict != LEAVE]
    values = {name: [getattr(gain, name) for gain in gains] for name in SUMS}
    total = {name: None if None in all_ else sum(all_) for name, all_ in values.items()}
    memory = Workload(0, cached_gb=sum(gain.cached_gb for gain in gains))
    usd = monthly_cost(memory, prices).items["cache", "memory"]
    return Report(tuple(found), assumptions, hidden, total, usd, prices.region, str(prices.as_of))


def _calls_per_s(one: Statistic, assumptions: Assumptions) -> float:
    if one.calls is None:
        return assumptions.calls_per_s
    days = assumptions.days or one.days
    if not days:
        raise DataError(
            "How many days the statistics cover is not in the file: say it by --days. They count "
            "from the last pg_stat_statements_reset(), or from the start of the server."
        )
    return one.calls / days / 86_400


def _rank(one: Advice) -> tuple[bool, float]:
    left = one.verdict == LEAVE
    return left, -(one.gain.waiting_s if one.gain and not left else one.share)


def _gain(
    one: Statistic, text: Shape, rate: float, writes: float, *, given: Assumptions, prices: Prices
) -> Gain:
    """By the formula for a TTL: keys that are asked for equally often, and independent calls."""
    # No statement has seen more values than it had calls.
    most = min(given.distinct, one.calls or given.distinct)
    keys = max(1.0, most) if text.parameters else 1.0
    hit_ratio = ttl_hit_ratio(rate / keys, given.ttl_s)
    database_ms = one.mean_ms + given.network_ms
    needed = break_even(given.cache_ms, given.cache_ms, database_ms)
    cached_ms = given.cache_ms + (1 - hit_ratio) * (database_ms + given.cache_ms)
    item_bytes = min(max(1.0, one.rows) * given.row_bytes, MAX_ITEM_BYTES)
    load = Workload(rate, hit_ratio=hit_ratio, item_bytes=item_bytes)
    requests_usd = monthly_cost(load, prices).items["cache", "requests"]
    monthly = rate * MONTH_S
    dpu = None if one.dpu is None else monthly * hit_ratio * one.dpu
    return Gain(
        keys=keys,
        hit_ratio=hit_ratio,
        needed=needed,
        most_keys=rate * given.ttl_s * (1 - needed) / needed if needed else 0.0,
        waiting_s=monthly * (database_ms - cached_ms) / 1_000,
        database_s=monthly * hit_ratio * one.mean_ms / 1_000,
        dpu=dpu,
        usd=None if dpu is None else dpu * prices.dsql_million_dpu / 1e6 - requests_usd,
        requests_usd=requests_usd,
        cached_gb=keys * hit_ratio * item_bytes / 1e9,
        stale=stale_share(writes, given.ttl_s, rate / keys),
    )


def _verdict(
    text: Shape, gain: Gain | None, calls: float | None, rate: float, writes: float
) -> tuple[str, str]:
    """What to do, and why."""
    if gain is None:
        return LEAVE, text.leave
    if gain.needed is None:
        return LEAVE, "the database answers it as fast as a cache would"
    factor = SURE if text.parameters else 1.0
    most = round(gain.most_keys)
    few = f"with up to {figure(most)} different parameter value{'s' * (most != 1)}"
    assumed = f"the {figure(gain.keys)} assumed"
    if gain.most_keys < gain.keys / factor:
        if gain.most_keys < 1:
            return LEAVE, "it is called too rarely for what a hit would save"
        return LEAVE, f"users wait less only {few}, less than a tenth of {assumed}"
    if calls is not None and calls < MIN_CALLS:
        return MEASURE, f"{calls:g} calls are too few to tell how often it is called"
    if gain.most_keys < gain.keys * factor:
        return MEASURE, f"users wait less {few}, too close to {assumed} to decide: count yours"
    if writes >= rate:
        return MEASURE, (
            "its tables are written more often than it is called: say how old an answer may be"
        )
    if text.doubt:
        return MEASURE, text.doubt
    if not text.parameters:
        return CACHE, "it has no parameters, so one entry answers every call"
    return CACHE, f"users wait less {few}, more than ten times {assumed}"


def figure(value: float) -> str:
    """A number with three digits that count.

    >>> figure(1234567), figure(0.12345)
    ('1,230,000', '0.123')
    """
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"
