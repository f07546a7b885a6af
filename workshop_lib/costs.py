"""What a workload costs in a month, without and with a cache (pure arithmetic).

All figures are US dollars a month. Left out, and not small for everybody: free tiers, discounts,
tax, logs and metrics, backups, transfer to the internet, NAT gateways, and people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from typing import Literal

HOURS_A_MONTH = 730.0
CACHE_MIN_GB = 0.1
"""ElastiCache Serverless for Valkey charges for at least 100 MB (pricing page, autumn 2026)."""
OLD_DAYS = 180
SERVICES = ("database", "store", "cache", "queue", "functions", "transfer")

# Aurora DSQL User Guide, "How billing works" (November 2026).
READ_DPU_BYTE, MIN_READ_BYTES = 0.00000183105, 2_048
WRITE_DPU_BYTE, MIN_WRITE_BYTES, MIN_ROW_BYTES = 0.00004883, 1_024, 128
INSERT_SECONDS, INSERT_ROW_SECONDS = 0.008, 0.0008
"""How long its query processor works in the Guide's examples: INSERT of one row, a row of 100."""
MAX_ROWS_DELETED = 3_000


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
        sqs_million_requests: Amazon SQS, standard queues.
        transfer_zone_gb: to another Availability Zone, each direction.
        transfer_out_gb: to the internet.

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
    sqs_million_requests: float
    transfer_zone_gb: float
    transfer_out_gb: float

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
    """The requests that a database or an object store gets, and their size.

    Attributes:
        reads_per_s, writes_per_s: mean over the whole month, nights included.
        hit_ratio: share of the reads that the cache answers, 0 to 1.
        item_bytes: of an answer.
        cached_gb: data in the cache, mean over the month.
        stored_gb: data in the database or the store.
        source: what is behind the cache: "database" (Aurora DSQL) or "store" (S3).
        read_dpu, write_dpu: what a read and a write cost Aurora DSQL, DPU. They depend on the
            statement: `EXPLAIN ANALYZE VERBOSE` ends with an estimate for yours. The defaults are
            two of the User Guide's examples: a SELECT of 120 rows, and an INSERT of one row.
        function_ms, function_hit_ms: how long a Lambda function runs for a read that asks the
            source (and for a write), and for a hit; 0 if there is none. It has 128 MB.
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
    write_dpu: float = 0.06175
    function_ms: float = 0.0
    function_hit_ms: float = 0.0
    other_zone: float = 0.0

    def __post_init__(self) -> None:
        if self.source not in {"database", "store"}:
            raise ValueError(f"source is {self.source!r}; it must be 'database' or 'store'")
        for field in fields(self):
            value = getattr(self, field.name)
            most = 1.0 if field.name in {"hit_ratio", "other_zone"} else 1e12
            if field.name != "source" and not 0 <= value <= most:
                raise ValueError(f"{field.name} is {value!r}; it must be from 0 to {most:g}")


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


PUBLISHED_READS = {
    "lookup of 5 small rows": 0.00675,
    "range scan": 0.02631,
    "120 rows, all columns": 0.06,
}
"""What three reads cost Aurora DSQL, in DPU: examples of its User Guide, "How billing works"."""


def transaction_dpu(
    *,
    bytes_read: float = 0.0,
    rows_written: int = 0,
    row_bytes: float = 0.0,
    compute_seconds: float = 0.0,
) -> float:
    """What a transaction costs Aurora DSQL, in DPU, by the formula of its User Guide.

    Args:
        bytes_read: from storage; charged as 2,048 at least.
        rows_written: inserted, changed or deleted.
        row_bytes: of each of them; charged as 128 at least, and all rows together as 1,024.
        compute_seconds: how long the query processor works.

    >>> round(transaction_dpu(compute_seconds=0.003), 5)  # the Guide's lookup of five small rows
    0.00675
    """
    dpu = max(bytes_read, MIN_READ_BYTES) * READ_DPU_BYTE + compute_seconds
    if rows_written:
        written = rows_written * max(row_bytes, MIN_ROW_BYTES)
        dpu += max(written, MIN_WRITE_BYTES) * WRITE_DPU_BYTE
    return dpu


def insert_dpu(rows: int, row_bytes: float) -> float:
    """What one INSERT of so many rows costs Aurora DSQL, in DPU, as in its Guide's examples.

    >>> round(insert_dpu(1, 100), 5), round(insert_dpu(100, 100), 3)
    (0.06175, 0.709)
    """
    return transaction_dpu(
        rows_written=rows,
        row_bytes=row_bytes,
        compute_seconds=max(INSERT_SECONDS, rows * INSERT_ROW_SECONDS),
    )


def run_cost(
    prices: Prices,
    *,
    statements: int,
    rows_each: int,
    row_bytes: float,
    reading_dpu: float = 0.0,
    invocations: int = 0,
    function_seconds: float = 0.0,
    function_mb: float = 0.0,
    requests: int = 0,
    moved_bytes: float = 0.0,
    outside: bool = False,
    stored_seconds: float = 0.0,
    kept: bool = False,
) -> Cost:
    """What one load test costs, in US dollars.

    After a run the cluster's own metric TotalDPU has the truth about the database.

    Args:
        prices: of the Region.
        statements: INSERTs that were sent, those of a warm-up among them.
        rows_each, row_bytes: of each INSERT, and the size of a row.
        reading_dpu: what all other statements take, DPU.
        invocations, function_seconds: of the Lambda function, all together.
        function_mb: the function's memory.
        requests: to the queue.
        moved_bytes: between the workers and the database.
        outside: the workers are not on AWS, so `moved_bytes` is what leaves AWS. Else it counts as
            if each byte went to another Availability Zone, which is the most that it can cost.
        stored_seconds: for how long the rows are stored.
        kept: the rows are not deleted again.

    """
    rows = statements * rows_each
    writing = statements * insert_dpu(rows_each, row_bytes)
    deleting = 0.0
    if rows and not kept:
        steps = math.ceil(rows / MAX_ROWS_DELETED)
        size = math.ceil(rows / steps)
        reading = transaction_dpu(bytes_read=size * row_bytes)
        deleting = steps * (reading + insert_dpu(size, row_bytes))
    months = stored_seconds / 3_600 / HOURS_A_MONTH
    gb_seconds = function_seconds * function_mb / 1024
    usd_dpu = prices.dsql_million_dpu / 1e6
    usd_byte = (prices.transfer_out_gb if outside else 2 * prices.transfer_zone_gb) / 1e9
    return Cost(
        {
            ("database", "reading"): reading_dpu * usd_dpu,
            ("database", "writing"): writing * usd_dpu,
            ("database", "deleting"): deleting * usd_dpu,
            ("database", "storage"): rows * row_bytes / 1e9 * prices.dsql_gb_month * months,
            ("queue", "requests"): requests / 1e6 * prices.sqs_million_requests,
            ("functions", "requests"): invocations / 1e6 * prices.lambda_million_requests,
            ("functions", "time"): gb_seconds * prices.lambda_gb_second,
            ("transfer", "out" if outside else "between zones"): moved_bytes * usd_byte,
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
        gb_seconds = busy_ms / 1000 * 128 / 1024
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
    # One unit (ECPU) a KB that a hit or a fill moves, at least one. A look that finds nothing and a
    # removal move next to no bytes: one unit each.
    ecpu = (hits + misses) * max(1.0, workload.item_bytes / 1_000) + misses + writes
    moved_gb = (hits + misses) * workload.item_bytes / 1e9
    memory_gb = max(CACHE_MIN_GB, workload.cached_gb)
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
        The ratio; None if it does not pay even if every read hits.

    """
    none = monthly_saving(replace(workload, hit_ratio=0.0), prices)
    all_hits = monthly_saving(replace(workload, hit_ratio=1.0), prices)
    if all_hits <= 0:
        return None
    # The saving is linear in the hit ratio: each hit saves the same.
    return max(0.0, -none / (all_hits - none))


def verdict(workload: Workload, prices: Prices) -> str:
    """Whether the cache pays for itself, in a sentence or two."""
    saving, needed = monthly_saving(workload, prices), paying_hit_ratio(workload, prices)
    if needed is None:
        return (
            f"This cache does not pay for itself, whatever its hit ratio: it costs {-saving:,.2f} "
            "USD a month more than it saves. If it is still worth having, it is for its speed."
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
