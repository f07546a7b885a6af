"""What a workload costs in a month, without and with a cache (pure arithmetic).

All figures are US dollars a month. Left out, and not small for everybody: free tiers, discounts,
tax, logs and metrics, backups, transfer to the internet, NAT gateways, and people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Literal

HOURS_A_MONTH = 730.0
CACHE_LEAST_GB = 0.1
"""ElastiCache Serverless for Valkey charges for at least 100 MB (pricing page, autumn 2026)."""
OLD_DAYS = 180
KB = 1_000.0
SERVICES = ("database", "store", "cache", "functions", "transfer")


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars; the units are in data/prices.toml, beside the sources.

    Attributes:
        region: the AWS Region.
        as_of: the day on which they were looked up.
        dsql_million_dpu, dsql_gb_month: Aurora DSQL, activity and storage.
        cache_gb_hour, cache_million_ecpu: ElastiCache Serverless for Valkey, memory and requests.
        s3_thousand_get, s3_thousand_put, s3_gb_month: S3 Standard, requests and storage.
        lambda_million_requests, lambda_gb_second: Lambda on arm64.
        transfer_zone_gb: to another Availability Zone, each direction.

    """

    region: str
    as_of: date
    dsql_million_dpu: float
    dsql_gb_month: float
    cache_gb_hour: float
    cache_million_ecpu: float
    s3_thousand_get: float
    s3_thousand_put: float
    s3_gb_month: float
    lambda_million_requests: float
    lambda_gb_second: float
    transfer_zone_gb: float

    def warning(self, today: date) -> str:
        """What to be careful about: empty if the prices are of the last half year."""
        days = (today - self.as_of).days
        if days <= OLD_DAYS:
            return ""
        return (
            f"These prices are {days} days old (of {self.as_of}, {self.region}). Look them up, and "
            "change data/prices.toml, before you decide anything by them."
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked for, and of what.

    Attributes:
        reads_per_s, writes_per_s: mean over the whole month, nights included.
        hit_ratio: share of the reads that the cache answers, 0 to 1.
        item_bytes: of an answer.
        cached_gb: data in the cache, mean over the month.
        stored_gb: data in the database or the store.
        source: what is behind the cache: "database" (Aurora DSQL) or "store" (S3).
        read_dpu, write_dpu: what a read and a write cost Aurora DSQL, DPU. They depend on the
            statement: `EXPLAIN ANALYZE VERBOSE` ends with an estimate for yours. The defaults are
            the User Guide's example of a SELECT of 120 rows (0.016 compute, 0.043 read), and as
            much for a write, which is a guess.
        function_ms, function_hit_ms: how long a Lambda function runs for a read that asks the
            source (and for a write), and for a hit; 0 if there is none.
        function_mb: its memory.
        other_zone: share of the cache's traffic that crosses to another Availability Zone, 0 to 1.

    Raises:
        ValueError: a value out of its range; the text names it.

    """

    reads_per_s: float
    writes_per_s: float = 0.0
    hit_ratio: float = 0.9
    item_bytes: float = 2_000.0
    cached_gb: float = 0.1
    stored_gb: float = 1.0
    source: Literal["database", "store"] = "database"
    read_dpu: float = 0.06
    write_dpu: float = 0.06
    function_ms: float = 0.0
    function_hit_ms: float = 0.0
    function_mb: float = 128.0
    other_zone: float = 0.0

    def __post_init__(self) -> None:
        if self.source not in {"database", "store"}:
            raise ValueError(f"source is {self.source!r}; it must be 'database' or 'store'")
        for field in fields(self):
            value = getattr(self, field.name)
            most = 1.0 if field.name in {"hit_ratio", "other_zone"} else 1e12
            if field.name != "source" and not 0 <= value <= most:
                raise ValueError(f"{field.name} is {value!r}; it must be from 0 to {most:g}")

    @property
    def ecpu(self) -> float:
        """ElastiCache processing units of a read or a write of an item: one a KB, at least one."""
        return max(1.0, self.item_bytes / KB)


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars: a month's, or a run's.

    Attributes:
        items: by service and what is charged there, as in ("cache", "memory").

    """

    items: Mapping[tuple[str, str], float]

    @property
    def total(self) -> float:
        """All of it."""
        return sum(self.items.values())

    @property
    def by_service(self) -> dict[str, float]:
        """The sum of each service, also of those that cost nothing."""
        found = dict.fromkeys(SERVICES, 0.0)
        for (service, _), usd in self.items.items():
            found[service] += usd
        return found


def run_cost(
    prices: Prices,
    *,
    invocations: int,
    seconds_each: float,
    rows: int,
    function_mb: float = 128.0,
    row_dpu: float = 0.06,
) -> Cost:
    """What one load test costs, in US dollars, by Lambda functions that write to Aurora DSQL.

    Args:
        prices: of the Region.
        invocations: of the function, the warm-up's among them.
        seconds_each: how long one runs.
        rows: written, and deleted again afterwards.
        function_mb: the function's memory.
        row_dpu: what writing a row takes, DPU. The default is a guess, as for a workload's writes:
            after a run, the cluster's own metric TotalDPU has the truth.

    """
    gb_seconds = invocations * seconds_each * function_mb / 1024
    return Cost(
        {
            ("database", "writing"): rows * row_dpu / 1e6 * prices.dsql_million_dpu,
            ("database", "deleting"): rows * row_dpu / 1e6 * prices.dsql_million_dpu,
            ("functions", "requests"): invocations / 1e6 * prices.lambda_million_requests,
            ("functions", "time"): gb_seconds * prices.lambda_gb_second,
        }
    )


def monthly_cost(workload: Workload, prices: Prices, *, cached: bool = True) -> Cost:
    """What the workload costs in a month of 730 hours.

    Every read looks into the cache; a miss reads the source and fills the cache; a write goes to
    the source and removes the entry.

    Args:
        workload: what is asked for.
        prices: by what it is charged.
        cached: False for the same workload with nothing before the source.

    """
    seconds = HOURS_A_MONTH * 3600
    reads, writes = workload.reads_per_s * seconds, workload.writes_per_s * seconds
    hits = reads * workload.hit_ratio if cached else 0.0
    misses = reads - hits
    items = _source(workload, prices, misses, writes)
    if cached:
        items |= _cache(workload, prices, hits, misses, writes)
    busy_ms = (misses + writes) * workload.function_ms + hits * workload.function_hit_ms
    if busy_ms:
        gb_seconds = busy_ms / 1000 * workload.function_mb / 1024
        items["functions", "invocations"] = (reads + writes) / 1e6 * prices.lambda_million_requests
        items["functions", "duration"] = gb_seconds * prices.lambda_gb_second
    return Cost(items)


def _source(
    workload: Workload, prices: Prices, reads: float, writes: float
) -> dict[tuple[str, str], float]:
    if workload.source == "store":
        return {
            ("store", "reads"): reads / 1000 * prices.s3_thousand_get,
            ("store", "writes"): writes / 1000 * prices.s3_thousand_put,
            ("store", "storage"): workload.stored_gb * prices.s3_gb_month,
        }
    return {
        ("database", "reads"): reads * workload.read_dpu / 1e6 * prices.dsql_million_dpu,
        ("database", "writes"): writes * workload.write_dpu / 1e6 * prices.dsql_million_dpu,
        ("database", "storage"): workload.stored_gb * prices.dsql_gb_month,
    }


def _cache(
    workload: Workload, prices: Prices, hits: float, misses: float, writes: float
) -> dict[tuple[str, str], float]:
    # A look that finds nothing and a removal move next to no bytes: one unit each.
    ecpu = (hits + misses) * workload.ecpu + misses + writes
    moved_gb = (hits + misses) * workload.item_bytes / 1e9
    memory_gb = max(CACHE_LEAST_GB, workload.cached_gb)
    return {
        ("cache", "memory"): memory_gb * HOURS_A_MONTH * prices.cache_gb_hour,
        ("cache", "requests"): ecpu / 1e6 * prices.cache_million_ecpu,
        ("transfer", "between zones"): moved_gb * workload.other_zone * prices.transfer_zone_gb,
    }


def monthly_saving(workload: Workload, prices: Prices) -> float:
    """What the cache saves in a month, US dollars; below 0 if it costs more than it saves."""
    without = monthly_cost(workload, prices, cached=False).total
    return without - monthly_cost(workload, prices).total


def paying_hit_ratio(workload: Workload, prices: Prices) -> float | None:
    """The hit ratio from which on the cache saves more than it costs.

    Returns:
        The ratio; 0 if it pays with no hits at all (it cannot); None if not even with all.

    """
    none = monthly_saving(replace(workload, hit_ratio=0.0), prices)
    all_hits = monthly_saving(replace(workload, hit_ratio=1.0), prices)
    if all_hits <= 0:
        return None
    # The saving is linear in the hit ratio: each hit saves as much as the other.
    return max(0.0, -none / (all_hits - none))


def sensitivity(
    workload: Workload, prices: Prices, factor: float = 2.0
) -> dict[str, tuple[float, float]]:
    """What the saving becomes if one input is smaller or larger by a factor.

    Not the hit ratio but the share of misses: that one can double.

    Returns:
        By input, the monthly saving with the smaller and with the larger value, US dollars; those
        that matter most come first.

    Raises:
        ValueError: a factor of 1 or less.

    """
    if not factor > 1:
        raise ValueError(f"factor is {factor!r}; it must be above 1")
    names = ["reads_per_s", "writes_per_s", "item_bytes", "cached_gb"]
    names += ["read_dpu"] if workload.source == "database" else []
    found = {
        name: (
            monthly_saving(replace(workload, **{name: getattr(workload, name) / factor}), prices),
            monthly_saving(replace(workload, **{name: getattr(workload, name) * factor}), prices),
        )
        for name in names
    }
    misses = 1 - workload.hit_ratio
    found["misses"] = (
        monthly_saving(replace(workload, hit_ratio=1 - misses / factor), prices),
        monthly_saving(replace(workload, hit_ratio=1 - min(1.0, misses * factor)), prices),
    )
    return dict(sorted(found.items(), key=lambda item: -abs(item[1][1] - item[1][0])))


def verdict(workload: Workload, prices: Prices) -> str:
    """Whether the cache pays for itself, in a sentence or two."""
    saving, needed = monthly_saving(workload, prices), paying_hit_ratio(workload, prices)
    if needed is None:
        return (
            f"This cache does not pay for itself, whatever its hit ratio: it costs {-saving:,.2f} "
            "USD a month more than it saves. If it is worth that, then for its speed."
        )
    if saving <= 0:
        return (
            f"With a hit ratio of {workload.hit_ratio:.2f} this cache costs {-saving:,.2f} USD a "
            f"month more than it saves; above {needed:.2f} it would pay for itself."
        )
    return (
        f"This cache saves {saving:,.2f} USD a month. It would pay for itself from a hit ratio of "
        f"{needed:.2f} on; yours is {workload.hit_ratio:.2f}."
    )
