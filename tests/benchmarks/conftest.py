"""Speed as ratios: we and a baseline take turns in one run; a table at the end shows all of it.

Times double and halve with whatever else the machine does. The ratio of two things measured within
the same tenth of a second stays.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil
import pytest
from cachelib import RedisCache
from dogpile.cache import CacheRegion, make_region
from rich.console import Console
from rich.table import Table

from workshop_lib.measure import percentile, percentile_interval, readable, time_shuffled
from workshop_lib.rows import Rows
from workshop_lib.services import local

ROUNDS = 40
"""Pairs of one block of ours and one of the baseline; each gives one ratio."""
BLOCK = 10
TTL_S = 600


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the table; times are medians, for orientation only."""

    what: str
    ours: str
    baseline: str
    peers: str
    ratio: float
    """Ours to the baseline: the median over the rounds."""
    interval: tuple[float, float]
    goal: float | None
    """None where no goal is set, and only the regression bound holds."""
    rounds: int = 1

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "met" if self.ratio <= self.goal else "missed"


lines = pytest.StashKey[list[Line]]()
Judge = Callable[..., None]
Race = Callable[..., None]


@pytest.fixture
def judge(request) -> Judge:
    """Puts a line into the table and holds it to its goal, or to the bound of a goal not met yet.

    It fails where the whole interval lies beyond: chance alone turns nothing red.
    """

    def decide(line: Line, bound: float | None = None) -> None:
        request.config.stash.setdefault(lines, []).append(line)
        limit = line.goal if bound is None else bound
        low, high = line.interval
        if low > limit:
            pytest.fail(
                f"{line.what}: {line.ratio:.3g} × the baseline (95 % interval {low:.3g} to "
                f"{high:.3g}). The goal is {line.goal}, and this test allows {limit}.",
                pytrace=False,
            )

    return decide


@pytest.fixture
def apart(ws, state) -> Iterator[None]:
    """We have one processor and the engines the others, where the system lets us choose (Linux).

    Else the kernel puts client and server on one processor or on two, as it likes and for seconds
    on end. On one, a round trip takes half the time, and all that we add weighs twice as much. Two
    are more like two machines.
    """
    mine, *theirs = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]

    def place(us: list[int], them: list[int]) -> None:
        for engine in local.status(state).engines:
            server = psutil.Process(engine.pid)
            for process in (server, *server.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):  # a connection that has just been closed
                    process.cpu_affinity(them)
        os.sched_setaffinity(0, us)

    if theirs:
        place([mine], theirs)
    yield
    if theirs:
        place([mine, *theirs], [mine, *theirs])


@pytest.fixture
def race(judge, apart) -> Race:
    """Times subjects against each other: ours is the first, the baseline the second.

    The others are peers, compared with the baseline in the same rounds.
    """

    def run(
        what: str,
        subjects: Mapping[str, Callable[[], object]],
        *,
        goal: float | None,
        bound: float | None = None,
        before: Callable[[], object] | None = None,
        rounds: int = ROUNDS,
        block: int = BLOCK,
    ) -> None:
        prepare = dict.fromkeys(subjects, before) if before else None
        medians: dict[str, list[float]] = {name: [] for name in subjects}
        for number in range(rounds):
            found = time_shuffled(
                subjects, block, warm_up=int(number == 0), seed=number, block=block, before=prepare
            )
            for name, samples in found.items():
                medians[name].append(samples.median)
        judge(compared(what, medians, goal), bound)

    return run


def compared(what: str, seconds: Mapping[str, Sequence[float]], goal: float | None) -> Line:
    """The line for seconds that were measured in the same rounds; ours and the baseline first."""
    ours, baseline, *peers = seconds

    def ratios(name: str) -> list[float]:
        return [a / b for a, b in zip(seconds[name], seconds[baseline], strict=True)]

    def time_of(name: str) -> str:
        return readable(percentile(seconds[name], 50))

    return Line(
        what,
        time_of(ours),
        f"{baseline}: {time_of(baseline)}",
        "\n".join(f"{name}: {percentile(ratios(name), 50):.3g}" for name in peers),
        percentile(ratios(ours), 50),
        percentile_interval(ratios(ours)),
        goal,
        len(seconds[ours]),
    )


@pytest.fixture
def line() -> Callable[..., Line]:
    return Line


@pytest.fixture
def compare() -> Callable[..., Line]:
    return compared


@dataclass(frozen=True, slots=True)
class Question:
    """A query of 500 rows of 8 columns: numbers, texts, amounts, dates, times, some NULL."""

    text: str
    answer: Rows


@pytest.fixture(scope="session")
def question(shared) -> Question:
    shared.load_table("users")
    shared.load_table("orders")
    text = (
        "SELECT user_id, name, email, department, last_login, order_id, order_date, order_amount "
        "FROM orders JOIN users USING (user_id) ORDER BY order_id LIMIT 500"
    )
    return Question(text, shared.database.query(text))


@pytest.fixture
def region(ws) -> CacheRegion:
    """dogpile.cache as it comes: pickle, and a lock among the threads of one process."""
    pool = {"connection_pool": ws.valkey.connection_pool}
    made = make_region(key_mangler=lambda key: f"{ws.namespace}:dogpile:{key}")
    return made.configure("dogpile.cache.redis", expiration_time=TTL_S, arguments=pool)


@pytest.fixture
def shelf(ws) -> RedisCache:
    """cachelib as it comes: pickle, and no lock."""
    return RedisCache(ws.valkey, default_timeout=TTL_S, key_prefix=f"{ws.namespace}:cachelib:")


def pytest_terminal_summary(terminalreporter, config) -> None:
    measured = config.stash.get(lines, [])
    if not measured:
        return
    console = Console(width=150)
    with console.capture() as printed:
        console.print(table_of(measured))
    terminalreporter.write_line(f"\n{printed.get()}")


def table_of(measured: Sequence[Line]) -> Table:
    table = Table("what", "ours", "baseline = 1", "peers", title="Ratios to the baseline, paired")
    for name in ("ratio", "95 % interval", "goal", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for one in measured:
        low, high = one.interval
        goal = "" if one.goal is None else f"{one.goal:g}"
        figures = (f"{one.ratio:.3g}", f"{low:.3g} – {high:.3g}", goal, one.verdict)
        table.add_row(one.what, one.ours, one.baseline, one.peers, *figures)
    return table
