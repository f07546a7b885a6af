"""Everything at once for ten minutes, to see whether anything grows, gets lost, or fails.

Run by `make soak` (`ARGS="--seconds 60 --rate 200"`); no part of the tests. In a process of its
own, with engines of its own in a state folder that is deleted afterwards, requests arrive at random
at a given rate, whether or not those before are done. They read through three caches, write,
conflict, ask for what is not there, and come in bursts; entries expire all the time, and the cache
is restarted twice. Exit code 0 only if

- no request failed, but writers that could not tell the cache while it was away (`untold`);
- every answer was one that had been true;
- the caches' counts are the requests': reads = hits + misses + stale answers;
- each load of a cache is one query, and there is no other query;
- every increment that was committed is in the table, and no other;
- nothing grew: of each figure, the median of the last third of the time is above the median of the
  middle third by no more than is allowed. The first third is for warming up. Medians, because a
  restart, a burst or a garbage collection is a peak and no leak; allowed is a share of the middle,
  and a little, because a figure near 0 has no share. Pools also rise and fall with what else the
  machine does: they may reach again what they had reached before. In ten minutes at 60 arrivals a
  second a leak of half a kilobyte a request is seen.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import drill
import psutil

from workshop_lib import Workshop, open_workshop
from workshop_lib.cache.object_cache import ObjectCache
from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.cache.record_cache import RecordCache
from workshop_lib.database import Cursor
from workshop_lib.errors import ServiceUnreachableError
from workshop_lib.sandbox import Sandbox
from workshop_lib.services import local
from workshop_lib.services.state_folder import NAME, StateFolder, state_folder

IDS = 500
OBJECTS = 50
TTL_S = 3.0
THREADS = 24
SAMPLE_S = 2.0
MOST_LATE_S = 30.0
ASK = "SELECT id, v FROM thing WHERE id = %s"
ASK_NEW = "SELECT id, v FROM thing WHERE id = %s AND %s > 0"
MIX = {
    "query": 45, "record": 20, "absent": 5, "object": 12, "write": 12, "put": 3, "burst": 3,
}  # fmt: skip
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gauge:
    """A figure that must not grow.

    Attributes:
        unit: of the figure.
        share, little: by how much it may grow nevertheless.
        pooled: it rises and falls with what else the machine does, as pools do, so it may also be
            what it was at its highest before.

    """

    unit: str
    share: float
    little: float
    pooled: bool = False


GAUGES = {
    "memory of this process": Gauge("MiB", 0.02, 3),
    "memory of the engines": Gauge("MiB", 0.03, 4),
    "memory used by Valkey": Gauge("MiB", 0.05, 0.5),
    "keys": Gauge("", 0.10, 50),
    "connections to the database": Gauge("", 0, 2, pooled=True),
    "connections to the cache": Gauge("", 0, 2, pooled=True),
    "open files": Gauge("", 0, 3, pooled=True),
    "threads": Gauge("", 0, 1, pooled=True),
    "processes": Gauge("", 0, 2, pooled=True),
    "files in the temporary folder": Gauge("", 0, 0),
}


class Soak:
    """The requests, and what is known about what they must find."""

    def __init__(self, workshop: Workshop, box: Sandbox) -> None:
        self.box = box
        self.query = QueryCache(box, TTL_S, jitter=0.1)
        self.record = RecordCache(box, "thing", ttl=TTL_S, empty_ttl=TTL_S / 2, jitter=0.1)
        source = SimpleNamespace(
            objects=workshop.objects, valkey=box.valkey, namespace=box.namespace
        )
        self.object = ObjectCache(source, TTL_S, keep_seconds=2 * TTL_S)
        self.objects = workshop.objects
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.begun: Counter[int] = Counter()
        self.committed: Counter[int] = Counter()
        self.put_versions: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.serial = 0

    def prepare(self) -> None:
        """Fill the table and the store."""
        self.box.database.query("CREATE TABLE thing (id int PRIMARY KEY, v int)")
        self.box.database.insert_rows("thing", ["id", "v"], [(n, 0) for n in range(IDS)])
        for n in range(OBJECTS):
            self.objects.put(f"soak/{n}", b"0 " + b"x" * 4_000)
        self.admin = self.box.database.connect()
        self.queries_before = self.box.database.stats().queries

    def jobs(self, kind: str, rng: random.Random) -> list[Callable[[], None]]:
        """What arrives at one moment."""
        # Skewed: a hundredth of the rows gets a quarter of the requests.
        n = int(IDS * rng.random() ** 3.3)
        if kind == "burst":
            self.serial += 1
            return [lambda s=self.serial: self.ask_query(n, s)] * 10
        if kind == "write":
            return [lambda: self.write(n)] * rng.choice((1, 4))  # four of one row conflict
        name = f"soak/{rng.randrange(OBJECTS)}"
        return [
            {
                "query": lambda: self.ask_query(n),
                "record": lambda: self.ask_record(n),
                "absent": lambda: self.ask_absent(IDS + n),
                "object": lambda: self.ask_object(name),
                "put": lambda: self.put(name),
            }[kind]
        ]

    def ask_query(self, n: int, serial: int = 0) -> None:
        """Read by query; a burst's question was never asked before."""
        question = (ASK_NEW, (n, serial)) if serial else (ASK, (n,))
        rows: list[Any] = self.query.fetch(*question).rows
        self.count_read("query")
        self.check(len(rows) == 1 and rows[0][0] == n and 0 <= rows[0][1] <= self.begun[n], rows)

    def ask_record(self, n: int) -> None:
        """Read by primary key."""
        record = self.record.get(n)
        self.count_read("record")
        good = record is not None and record["id"] == n and 0 <= record["v"] <= self.begun[n]
        self.check(good, record)

    def ask_absent(self, n: int) -> None:
        """Read what is not there."""
        record = self.record.get(n)
        self.count_read("record")
        self.check(record is None, record)

    def ask_object(self, name: str) -> None:
        """Read an object."""
        body = self.object.get(name)
        self.count_read("object")
        good = body is not None and 0 <= int(body.split()[0]) <= self.put_versions[name]
        self.check(good, body and body[:20])

    def put(self, name: str) -> None:
        """Write an object through the cache."""
        with self.lock:
            self.put_versions[name] += 1
            version = self.put_versions[name]
        self.telling(lambda: self.object.put(name, b"%d " % version + b"x" * 4_000))

    def write(self, n: int) -> None:
        """Increment a row, then tell the caches."""

        def work(cursor: Cursor) -> None:
            cursor.execute("SELECT v FROM thing WHERE id = %s", (n,))
            (v,) = cursor.fetchone()
            cursor.execute("UPDATE thing SET v = %s WHERE id = %s", (v + 1, n))

        with self.lock:
            self.begun[n] += 1
        self.box.database.run_transaction(work)
        with self.lock:
            self.committed[n] += 1
        self.telling(lambda: self.record.invalidate(n))
        self.telling(lambda: self.query.invalidate(ASK, (n,)))

    def telling(self, work: Callable[[], object]) -> None:
        """Tell the cache; where it is away, that is an error of its own, and the only one."""
        try:
            work()
        except ServiceUnreachableError:
            self.count("untold" if self.away else "untold though the cache was there")

    away = False

    def count(self, what: str) -> None:
        """One more of it."""
        with self.lock:
            self.counts[what] += 1

    def count_read(self, kind: str) -> None:
        """One more read that was answered."""
        with self.lock:
            self.reads[kind] += 1

    def check(self, good: bool, found: object) -> None:
        """Note a wrong answer."""
        if not good:
            with self.lock:
                self.wrong.append(repr(found)[:200])

    def sample(self, here: psutil.Process) -> dict[str, float]:
        """Each gauge, now."""
        engines = here.children(recursive=True)
        with self.admin.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE client_port IS NOT NULL")
            (connections,) = cursor.fetchone()
        valkey = self.box.valkey
        return {
            "memory of this process": here.memory_info().rss / MIB,
            "memory of the engines": sum(map(own_memory, engines)) / MIB,
            "memory used by Valkey": valkey.info("memory")["used_memory"] / MIB,
            "keys": valkey.dbsize(),
            "connections to the database": connections,
            "connections to the cache": len(valkey.client_list()),
            "open files": here.num_fds(),
            "threads": here.num_threads(),
            "processes": len(engines),
            "files in the temporary folder": sum(
                not entry.name.startswith(("state", NAME))
                for entry in os.scandir(tempfile.gettempdir())
            ),
        }


@dataclass
class Found:
    """What a soak found."""

    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    latest_s: float = 0.0
    requests: int = 0


def own_memory(process: psutil.Process) -> int:
    """What it has written itself, bytes: neither shared memory nor pages of files.

    Not its unique memory where that can be told apart: a program's own pages belong to that as soon
    as no other process runs the same program, which has nothing to do with this soak.
    """
    try:
        resident = process.memory_info()
        if hasattr(resident, "shared"):  # Linux
            return int(resident.rss - resident.shared)
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0  # it ended meanwhile


def run(soak: Soak, seconds: float, rate: float, seed: int) -> Found:
    """Have requests arrive for so long, restart the cache twice, and look every two seconds."""
    rng, here, found = random.Random(seed), psutil.Process(), Found()
    kinds, weights = list(MIX), list(MIX.values())
    restarts = [seconds * 0.5, seconds * 5 / 6]
    threads = ThreadPoolExecutor(THREADS)
    over = threading.Event()
    began = time.monotonic()

    def one(job: Callable[[], None], due: float) -> None:
        found.latest_s = max(found.latest_s, time.monotonic() - due)
        try:
            job()
        except Exception as error:  # noqa: BLE001 -- each is counted, and none is expected
            soak.count(f"failed: {type(error).__name__}: {error}"[:160])

    def look() -> None:
        while not over.wait(SAMPLE_S):
            now = time.monotonic() - began
            if restarts and now >= restarts[0]:
                restarts.pop(0)
                soak.away = True
                soak.box.stop("cache")
                over.wait(1.0)
                soak.box.start("cache")
                over.wait(2.0)  # until the breakers' rest is over
                soak.away = False
                soak.count("restarts of the cache")
            try:
                found.samples.append((now, soak.sample(here)))
            except Exception as error:  # noqa: BLE001 -- the thread must not end in silence
                soak.count(f"failed to look: {error}"[:160])

    looker = threading.Thread(target=look)
    looker.start()
    due = began
    try:
        while due - began < seconds:
            due += rng.expovariate(rate)
            time.sleep(max(0.0, due - time.monotonic()))
            for job in soak.jobs(rng.choices(kinds, weights)[0], rng):
                found.requests += 1
                threads.submit(one, job, due)
    finally:
        threads.shutdown(wait=True)
        over.set()
        looker.join()
    return found


def judge(soak: Soak, found: Found, seconds: float) -> list[str]:
    """What is wrong, in words; nothing if all is well. Prints the figures."""
    bad = [f"{n} × {what}" for what, n in soak.counts.items() if "fail" in what or "though" in what]
    bad += [f"a wrong answer: {one}" for one in soak.wrong[:3]]
    loads = 0
    for name in ("query", "record", "object"):
        cache = getattr(soak, name)
        s, reads = cache.stats(), soak.reads[name]
        answers = s.hits + s.misses + s.stale
        sys.stdout.write(
            f"{name:<8}{reads:>9,} reads = {s.hits:,} hits + {s.misses:,} misses + {s.stale:,} "
            f"stale; {s.coalesced:,} coalesced, {s.errors:,} without the cache\n"
        )
        if answers != reads:
            bad.append(f"{name}: {reads} reads, and {answers} answers were counted")
        if name != "object":
            loads += s.misses - s.coalesced + s.early
    queries = soak.box.database.stats().queries - soak.queries_before
    if queries != loads:
        bad.append(f"{loads} loads, and {queries} queries")
    rows = soak.box.database.query("SELECT id, v FROM thing WHERE v <> 0").rows
    if dict(rows) != dict(soak.committed):
        bad.append("the table and the increments that were committed differ")
    stats = soak.box.database.stats()
    sys.stdout.write(
        f"{'written':<8}{sum(soak.committed.values()):>9,} increments, "
        f"{stats.conflicts:,} conflicts, {sum(soak.put_versions.values()):,} objects; "
        f"{dict(soak.counts)}\n{found.requests:,} requests in {seconds:.0f} s; the latest began "
        f"{found.latest_s:.2f} s late\n\n"
    )
    if found.latest_s > MOST_LATE_S:
        bad.append(f"a request began {found.latest_s:.0f} s late: the rate is beyond this machine")
    sys.stdout.write(
        f"{'':<30}{'first':>9}{'middle':>9}{'last':>9}  third{'most':>9}{'allowed':>9}\n"
    )
    for name, gauge in GAUGES.items():
        thirds = [
            statistics.median(
                [s[name] for at, s in found.samples if k <= 3 * at / seconds < k + 1] or [0.0]
            )
            for k in range(3)
        ]
        most = max(s[name] for _, s in found.samples)
        allowed = thirds[1] * (1 + gauge.share) + gauge.little
        if gauge.pooled:
            allowed = max(allowed, *(s[name] for at, s in found.samples if 3 * at < 2 * seconds))
        form = ",.1f" if gauge.unit else ",.0f"
        figures = "".join(f"{value:>9{form}}" for value in thirds)
        sys.stdout.write(
            f"{name:<30}{figures}       {most:>9{form}}{allowed:>9{form}} {gauge.unit}\n"
        )
        if thirds[2] > allowed:
            bad.append(f"{name} grew from {thirds[1]:{form}} to {thirds[2]:{form}} {gauge.unit}")
    return bad


def main() -> int:
    """Soak. Returns an exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (600)")
    parser.add_argument("--rate", type=float, default=60.0, help="arrivals a second (60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100, help="of the drill afterwards (100)")
    given = parser.parse_args()
    # All in one folder, that all processes below know: what is left there is seen.
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        tempfile.tempdir = place
        (Path(place) / "state.toml").write_text("")
        os.environ |= {
            "TMPDIR": place,
            "WORKSHOP_STATE_DIR": place,
            "WORKSHOP_CONFIG": str(Path(place) / "state.toml"),
            "WORKSHOP_LINGER_SECONDS": "0",
            "TQDM_DISABLE": "1",
        }
        folder = state_folder(Path(place))
        code = _soak(folder, given)
        if given.rounds:
            try:
                drill.run(given.rounds, given.seed, folder)
            finally:
                local.reset(folder)
        return code


def _soak(folder: StateFolder, given: argparse.Namespace) -> int:
    try:
        workshop = open_workshop("soak", workshop_result_file=folder.path.parent / "state.json")
        box = workshop.sandbox(database=True)
        soak = Soak(workshop, box)
        soak.prepare()
        found = run(soak, given.seconds, given.rate, given.seed)
        bad = judge(soak, found, given.seconds)
        soak.admin.close()
        workshop.close()
    finally:
        local.reset(folder)
    left = [p.pid for p in psutil.Process().children(recursive=True)]
    if left:
        bad.append(f"processes are left: {left}")
    sys.stdout.write("\n" + ("\n".join(bad) if bad else "Nothing grew, nothing was lost.") + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
