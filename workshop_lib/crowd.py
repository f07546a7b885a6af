"""Readers in several processes that ask the same question at the same moment."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis

from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.database import Database
from workshop_lib.errors import WorkshopError
from workshop_lib.measure import Moment, moment
from workshop_lib.rows import Params
from workshop_lib.services import DatabaseEndpoint

if TYPE_CHECKING:  # each process of a crowd would import pandas with it
    from workshop_lib.sandbox import Sandbox

READY_S = 60.0
"""How long all processes may take to start before the readers give up, seconds."""
_gate: Any = None


@dataclass(frozen=True, slots=True)
class Crowd:
    """What became of readers that asked at once.

    Attributes:
        moments: one a reader.
        queries: how many reached the database.

    """

    moments: list[Moment]
    queries: int


@dataclass(frozen=True, slots=True)
class _Question:
    """What a process needs to know; it travels through a pipe, as it holds passwords."""

    database: DatabaseEndpoint
    cache: Mapping[str, Any]
    namespace: str
    ttl: float
    statement: str
    params: Params
    readers: int
    behaviour: Mapping[str, Any]


class _Parts:
    """What a QueryCache wants to be given."""

    def __init__(self, asked: _Question) -> None:
        self.namespace, self.default_ttl = asked.namespace, asked.ttl
        self.valkey = redis.Redis(**asked.cache)
        self.database = Database(asked.database, asked.namespace, pool_min=1)


def read_at_once(
    box: Sandbox,
    statement: str,
    params: Params = None,
    *,
    processes: int = 5,
    readers: int = 10,
    **behaviour: Any,
) -> Crowd:
    """Let many readers ask a QueryCache the same question at the same moment.

    Args:
        box: whose cache and database.
        statement, params: the question.
        processes: how many; they share nothing but the cache and the database.
        readers: threads in each.
        behaviour: attributes of Policy by name, for example single_flight=False.

    Raises:
        WorkshopError: a process did not start or ended early.

    """
    asked = _Question(
        database=box.database.endpoint,
        cache=box.cache_arguments[0],
        namespace=box.namespace,
        ttl=box.default_ttl,
        statement=statement,
        params=params,
        readers=readers,
        behaviour=behaviour,
    )
    # Not forked: a forked process would share the notebook's sockets and locks.
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _remember, (gate,)) as pool:
        # Each waits at the gate until all are there, so no process takes two.
        answers = [pool.submit(_read, asked) for _ in range(processes)]
        try:
            crowds = [answer.result() for answer in answers]
        except (BrokenProcessPool, threading.BrokenBarrierError):
            raise WorkshopError(
                f"Not all of {processes} processes were ready within {READY_S:.0f} s, or one of "
                "them was killed. Is the machine out of memory? Try fewer processes."
            ) from None
    return Crowd([m for crowd in crowds for m in crowd.moments], sum(c.queries for c in crowds))


def _remember(gate: Any) -> None:
    """Keep the gate: it cannot travel with a question."""
    global _gate  # noqa: PLW0603 -- one a process, set once
    _gate = gate


def _read(asked: _Question) -> Crowd:
    parts = _Parts(asked)
    cache = QueryCache(parts, **asked.behaviour)
    parts.database.query("SELECT 1")  # connected, so that the question alone is seen
    parts.valkey.ping()
    _gate.wait(READY_S)
    due: list[float] = []
    together = threading.Barrier(asked.readers, lambda: due.append(time.perf_counter()))

    def ask(_: int) -> Moment:
        together.wait(READY_S)
        # A thread that gets its turn late has waited as well.
        return moment(lambda: cache.fetch(asked.statement, asked.params).source, due[0])

    with ThreadPoolExecutor(asked.readers) as threads:
        moments = list(threads.map(ask, range(asked.readers)))
    queries = parts.database.stats().queries - 1
    parts.database.close()
    parts.valkey.close()
    return Crowd(moments, queries)
