"""Fifty requests at once for what is not in the cache, and whose query takes 50 ms.

How many queries that causes, and how long the last of them waits, as a multiple of the same query
asked by one alone in the same round.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

ROUNDS = 9


class Herd:
    """Processes of so many threads each, which all ask the same question when they are told to."""

    def __init__(self, processes: int, told: dict[str, Any]) -> None:
        command = [sys.executable, Path(__file__).with_name("herd.py")]
        self._numbers = count(1)
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        self._say(told)  # not as an argument: it holds passwords
        self._hear()

    def ask(self) -> tuple[list[float], int]:
        """Something new: how long each thread waited, and the queries."""
        self._say(next(self._numbers))
        answers = self._hear()
        waits = [seconds for seen, _ in answers for seconds in seen]
        return waits, sum(queries for _, queries in answers)

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    def _say(self, line: Any) -> None:
        for process in self._processes:
            process.stdin.write(json.dumps(line) + "\n")
            process.stdin.flush()

    def _hear(self) -> list[Any]:
        return [json.loads(process.stdout.readline()) for process in self._processes]


@pytest.fixture
def herd(ws, request) -> Iterator[Herd]:
    processes, threads = request.param
    arguments = ws.endpoints.cache.arguments
    told = {
        "valkey": {name: arguments[name] for name in ("host", "port", "password")},
        "database": dict(ws.endpoints.database.arguments),
        "namespace": ws.namespace,
        "threads": threads,
    }
    running = Herd(processes, told)
    yield running
    running.end()


@pytest.mark.parametrize(
    ("herd", "where"),
    [((1, 50), "1 process"), ((5, 10), "5 processes")],
    indirect=["herd"],
    ids=["1 process", "5 processes"],
)
def test_fifty_at_once(ws, herd, judge, line, compare, where):
    worst: dict[str, list[float]] = {"ours": [], "the query alone": []}
    most = 0
    for _ in range(ROUNDS):
        worst["the query alone"].append(alone(ws.database))
        waits, queries = herd.ask()
        assert len(waits) == 50
        worst["ours"].append(max(waits))
        most = max(most, queries)
    shown = (f"{most}", "one query: 1", "")
    judge(line(f"50 misses, {where}: queries", *shown, most, (most, most), 1, ROUNDS))
    judge(compare(f"50 misses, {where}: worst wait", worst, 1.4))


def alone(database) -> float:
    started = time.perf_counter()
    database.query("SELECT 0, pg_sleep(0.05)::text")
    return time.perf_counter() - started
