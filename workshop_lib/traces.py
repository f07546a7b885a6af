"""Traces of requests: read from a log or a table, or made from published facts."""

from __future__ import annotations

import csv
import gzip
import re
import tomllib
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workshop_lib.errors import DataError
from workshop_lib.paths import FILES
from workshop_lib.simulate import sample_keys, zipf_stream

FILE = FILES / "data" / "traffic.toml"
MAX_REQUESTS = 20_000_000
MAX_SECONDS = 1e15
MAX_BYTES = 1 << 31
UNKNOWN = -1
OPERATIONS = {
    "read": "read get gets mget getex getrange exists hget hgetall hmget head",
    "write": "write insert update delete put post patch replace append prepend cas incr decr "
    "incrby decrby del unlink getdel getset hdel hincrby",
    "fill": "fill add set setex psetex setnx hset hmset",
}
"""A write changes the row behind a key, or deletes the entry of a row that was changed. A fill puts
an answer into a cache: it tells a size, and is neither a read nor a write."""
KINDS = {name: kind for kind, names in OPERATIONS.items() for name in names.split()}
MANY_KEYS = frozenset({"del", "exists", "mget", "unlink"})
VALUES = {"set": (1, 2), "setnx": (1, 2), "setex": (2, 3), "psetex": (2, 3)}
"""From and to where a command's value stands among the words after its name."""
LOG = re.compile(r'\S+ \S+ [^\[]*\[([^\]]+)\] "([A-Z]+) (\S+)(?: HTTP/[^"]*)?" (\d+) (\d+|-)')
LOG_LINE = re.compile(r'\S+ \S+ [^\[]*\[[^\]]+\] "')
MONITOR = re.compile(r"(\d+\.\d+) \[(\d+) ([^\]]+)\] ")
WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')
ESCAPED = re.compile(r"\\x..|\\.")


class Request(NamedTuple):
    """Of one line: seconds, key, bytes of the value or UNKNOWN, operation."""

    seconds: float
    key: str
    size: int
    op: str


Parse: TypeAlias = Callable[[str], Iterable[Request]]


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of time. It knows keys as numbers only: their names stay in the file.

    Attributes:
        seconds: since the first request; one a request, ascending.
        keys: numbers from 0 in order of first appearance; one a request.
        writes: whether it changes the row; the others are reads; one a request.
        key_bytes: of key and value together, the largest seen; one a key number.
        share: of the service's keys that are in it, above 0 to 1.

    """

    seconds: NDArray[np.float64]
    keys: NDArray[np.int32]
    writes: NDArray[np.bool_]
    key_bytes: NDArray[np.int64]
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def reads(self) -> NDArray[np.int32]:
        """The key number of each read."""
        return self.keys[~self.writes]

    def sample(self, requests: int, seed: int = 0) -> Trace:
        """About so many requests: all those for some keys, chosen at random.

        Raises:
            DataError: no key was chosen.

        """
        rate = min(1.0, requests / max(len(self), 1))
        chosen = sample_keys(self.keys, rate, seed)
        if not chosen.any():
            raise DataError(f"A sample of {requests} requests has no key. Ask for more.")
        keys, left = pd.factorize(self.keys[chosen])
        return Trace(
            self.seconds[chosen],
            keys.astype(np.int32),
            self.writes[chosen],
            self.key_bytes[left],
            self.share * rate,
        )


def read_trace(path: str | Path, *, size: int = 1_000, share: float = 1.0) -> Trace:
    """Read requests from a file, compressed (.gz) or not.

    It may be a CSV table with a line of names, `time,key` and, where known, `size,op`; JSON lines
    with the same names; a web server's access log (common or combined format); or what `valkey-cli
    MONITOR` prints. A time is in seconds, or like 2026-01-31T12:00:00Z. Without an `op` it is a
    read. In a log only GET, HEAD, POST, PUT, PATCH and DELETE count; among Valkey's commands, those
    in OPERATIONS, and setting a key that the same client has just read is a fill, else a write.

    Args:
        path: of the file.
        size: bytes to assume for keys whose size the file does not tell; above 0.
        share: of the service's keys that are in it, if it is a sample; above 0 to 1.

    Raises:
        DataError: it cannot be read, is none of these, or is too long; the text names the line. Or
            `size` or `share` is out of range.

    """
    if size <= 0 or not 0 < share <= 1:
        raise DataError(f"size is {size} and share {share}: size has to be above 0, share 0 to 1.")
    seconds, hashes, sizes, kinds = array("d"), array("q"), array("q"), array("B")
    codes = {"read": 0, "write": 1, "fill": 2}
    for request in _requests(Path(path)):
        seconds.append(request.seconds)
        # Python's hash has a secret of the process: who reads it cannot try names. By chance, two
        # of ten million keys are taken for one in about one of 400,000 files.
        hashes.append(hash(request.key))
        sizes.append(len(request.key) + request.size if request.size >= 0 else UNKNOWN)
        kinds.append(codes[KINDS[request.op]])
    keys, names = pd.factorize(np.frombuffer(hashes, np.int64))
    key_bytes = np.full(len(names), UNKNOWN)
    np.maximum.at(key_bytes, keys, np.frombuffer(sizes, np.int64))
    key_bytes[key_bytes == UNKNOWN] = size
    kind, times = np.frombuffer(kinds, np.uint8), np.frombuffer(seconds)
    order = np.argsort(times, kind="stable")
    order = order[kind[order] != codes["fill"]]
    if codes["read"] not in kind:
        raise DataError(f"{path} has no read in it.")
    keys, left = pd.factorize(keys[order])
    since = times[order] - times[order[0]]
    writes = kind[order] == codes["write"]
    return Trace(since, keys.astype(np.int32), writes, key_bytes[left], share)


@dataclass(frozen=True, slots=True)
class Preset:
    """Facts about a production cluster, from data/traffic.toml; shares are from 0 to 1.

    Attributes:
        miss_ratio: in production.
        key_bytes, value_bytes: mean size.
        kqps: thousand requests per second.
        mean_frequency: requests per key.
        ttls: by TTL in seconds, its share of the entries.
        working_set_mb: of all keys, as if nothing expired.
        operations: their shares of the requests.
        zipf_alpha: the skew.

    """

    miss_ratio: float
    key_bytes: int
    value_bytes: int
    kqps: float
    mean_frequency: float
    ttls: dict[int, float]
    working_set_mb: float
    operations: dict[str, float]
    zipf_alpha: float


@cache
def presets() -> dict[str, Preset]:
    """The clusters of data/traffic.toml, by name."""
    found = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return msgspec.convert(found, dict[str, Preset], strict=False)


def preset_requests(name: str, requests: int, seed: int = 0) -> tuple[pd.DataFrame, float]:
    """Made requests with a cluster's skew, sizes, rate and mix of operations: a model of it.

    The cluster is modelled as many equal parts, each with its own hot keys, and the trace is one of
    them: as many keys as get so many requests in the cluster, each with a Zipf law's share (a key
    may get none), at random times over the same duration. Each entry has the mean size.

    Args:
        name: of the cluster.
        requests: reads and writes; fills are left out.
        seed: of all that is random.

    Returns:
        A row each with time, key, size and op, by time; and the share of the cluster's keys.

    Raises:
        DataError: there is no such cluster, or no request.

    """
    known = presets()
    if name not in known or requests < 1:
        raise DataError(f"There is no {name!r} of {requests} requests, only: {', '.join(known)}.")
    facts, rng = known[name], np.random.default_rng([seed, 1])
    reads = sum(share for op, share in facts.operations.items() if KINDS[op] == "read")
    # Each add is a fill, and a set for each other miss; what more sets there are must be writes.
    added, sets = (facts.operations.get(op, 0.0) for op in ("add", "set"))
    fills = added + min(sets, max(facts.miss_ratio * reads - added, 0.0))
    total_keys = facts.working_set_mb * 1e6 / (facts.key_bytes + facts.value_bytes)
    seconds = total_keys * facts.mean_frequency / (facts.kqps * 1_000)
    keys = max(1, round(requests / facts.mean_frequency / (1 - fills)))
    is_read = rng.random(requests) < reads / (sum(facts.operations.values()) - fills)
    ranks = zipf_stream(requests, keys, facts.zipf_alpha, seed)
    columns = {
        "time": np.sort(rng.random(requests) * seconds).round(3),
        "key": [f"k{rank:0{facts.key_bytes - 1}}" for rank in ranks],
        "size": facts.value_bytes,
        "op": np.where(is_read, "read", "write"),
    }
    return pd.DataFrame(columns), keys / total_keys


def _requests(path: Path) -> Iterator[Request]:
    """What the lines of a file say, in its order."""
    number, count, parse = 0, 0, None
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for raw in file:
                number += 1
                line = raw.decode(errors="backslashreplace")
                if parse is None:  # the first line says how to read the others
                    parse, is_heading = _choose(line)
                    if is_heading:
                        continue
                for request in parse(line) if line.strip() else ():
                    _require_valid(request)
                    count += 1
                    if count > MAX_REQUESTS:
                        raise ValueError(f"only {MAX_REQUESTS:,} requests fit; give a part of it")
                    yield request
    except (ValueError, OSError, EOFError, zlib.error, csv.Error, msgspec.MsgspecError) as error:
        where = f", line {number}" if number else ""
        raise DataError(f"{path}{where}: {error}.") from None


def _require_valid(request: Request) -> None:
    if not abs(request.seconds) < MAX_SECONDS:
        raise ValueError("its time is no number of seconds")
    if not UNKNOWN <= request.size < MAX_BYTES:
        raise ValueError(f"its size is not from 0 to {MAX_BYTES:,} bytes")
    if request.op not in KINDS:
        raise ValueError(f"its op {request.op[:20]!r} is none of {', '.join(KINDS)}")


def _choose(first: str) -> tuple[Parse, bool]:
    """How to read the lines of a file, by the first of them; and whether that is a heading."""
    if first.lstrip().startswith("{"):
        return _parse_json, False
    if MONITOR.match(first) or first.strip() == "OK":
        return _monitor(), first.strip() == "OK"
    if LOG_LINE.match(first):
        return _parse_log, False
    names = [name.strip().lower() for name in _cells(first)]
    if {"time", "key"} <= set(names):
        return _table(names), True
    raise ValueError(
        "this is no access log, no output of MONITOR and no JSON, and a table begins with a line "
        "of names, at least time,key"
    )


def _cells(line: str) -> list[str]:
    line = line.rstrip("\r\n").removeprefix("\ufeff")
    return next(csv.reader([line], strict=True)) if '"' in line else line.split(",")


def _table(names: list[str]) -> Parse:
    """The lines of a CSV table with these columns."""
    at = {name: place for place, name in enumerate(names)}
    time, key, size, op = at["time"], at["key"], at.get("size"), at.get("op")

    def parse(line: str) -> Iterable[Request]:
        cells = _cells(line)
        if len(cells) != len(names):
            raise ValueError(f"it has {len(cells)} columns, and the first line {len(names)}")
        return [
            Request(
                _seconds(cells[time]),
                cells[key],
                int(cells[size] or UNKNOWN) if size is not None else UNKNOWN,
                cells[op].strip().lower() if op is not None else "read",
            )
        ]

    return parse


class _Line(msgspec.Struct):
    time: float | str
    key: str | int
    size: int | None = None
    op: str = "read"


_decoder = msgspec.json.Decoder(_Line)


def _parse_json(line: str) -> Iterable[Request]:
    found = _decoder.decode(line)
    size = UNKNOWN if found.size is None else found.size
    return [Request(_seconds(found.time), str(found.key), size, found.op.lower())]


def _parse_log(line: str) -> Iterable[Request]:
    if not (found := LOG.match(line)):
        if LOG_LINE.match(line):  # a client that did not speak HTTP
            return []
        raise ValueError("this is no line of an access log")
    at, method, key, status, size = found.groups()
    if method.lower() not in KINDS:
        return []
    whole = status == "200" and method == "GET" and size != "-"
    return [Request(_log_seconds(at), key, int(size) if whole else UNKNOWN, method.lower())]


def _monitor() -> Parse:
    """The lines of `valkey-cli MONITOR`; what each client has read last is remembered."""
    asked: dict[str, set[str]] = {}

    def parse(line: str) -> Iterable[Request]:
        if not (found := MONITOR.match(line)):
            raise ValueError("this is no line of MONITOR")
        at, database, client = float(found[1]), found[2], f"{found[2]} {found[3]}"
        command, *words = WORD.findall(line, found.end())
        op = command.lower()
        if op not in KINDS or not words:
            return []
        keys, size = words if op in MANY_KEYS else words[:1], UNKNOWN
        if KINDS[op] == "fill":
            value = slice(*VALUES.get(op, (1, None)))
            size = sum(len(ESCAPED.sub(".", word)) for word in words[value])
            op = "fill" if keys[0] in asked.get(client, ()) else "write"
        elif KINDS[op] == "read":
            asked[client] = set(keys)
        prefix = f"{database}\0" if database != "0" else ""  # each has keys of its own
        return [Request(at, prefix + key, size, op) for key in keys]

    return parse


def _seconds(time: float | str) -> float:
    try:
        return float(time)
    except ValueError:
        moment = datetime.fromisoformat(str(time).strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@lru_cache(maxsize=1_000)
def _log_seconds(time: str) -> float:
    return datetime.strptime(time, "%d/%b/%Y:%H:%M:%S %z").timestamp()
