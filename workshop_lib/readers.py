"""Readers in several processes that ask the same question at the same moment."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import redis

from workshop_lib.cache.query_cache import QueryCache
from workshop_lib.database import Database
from workshop_lib.measure import Moment, moment
from workshop_lib.orphans import exit_with_parent
from workshop_lib.rows import Params
from workshop_lib.services import DatabaseEndpoint

if TYPE_CHECKING:  # each of the processes would import pandas with it
    from workshop_lib.sandbox import Sandbox

READY_S = 60.0
"""How long all processes may take to start before the readers give up, seconds."""
_gate: Any = None


@dataclass(frozen=True, slots=True)
class ConcurrentReads:
    """What became of readers that asked at once.

    Attributes:
        moments: one a reader.
        queries: how many reached the database.

    """

    moments: list[Moment]
    queries: int


def concurrent_reads(
    box: Sandbox,
    statement: str,
    params: Params = None,
    *,
    processes: int = 5,
    readers: int = 10,
    **behaviour: Any,
) -> ConcurrentReads:
    """Let many readers ask a QueryCache the same question at the same moment.

    Args:
        box: whose cache and database.
        statement, params: the question.
        processes: how many; they share nothing but the cache and the database.
        readers: threads in each.
        behaviour: attributes of Policy by name, for example single_flight=False.

    Raises:
        BrokenProcessPool: a process was killed, as where memory is short.
        BrokenBarrierError: they were not all ready in a minute.

    """
    servers = (box.database.endpoint, box.namespace, box.cache_arguments[0], box.default_ttl)
    question = (servers, statement, params, readers, behaviour)
    # Not forked: a forked process would share the notebook's sockets and locks.
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _begin, (gate, os.getpid())) as pool:
        # Each waits at the gate until all are there, so no process takes two.
        answers = [pool.submit(_read, *question) for _ in range(processes)]
        found = [answer.result() for answer in answers]
    moments = [moment for one in found for moment in one.moments]
    return ConcurrentReads(moments, sum(one.queries for one in found))


def _begin(gate: Any, parent: int) -> None:
    """End with a kernel that is killed; and keep the gate, which cannot travel with a question."""
    global _gate  # noqa: PLW0603 -- one a process, set once
    exit_with_parent(parent)
    _gate = gate


def _read(
    servers: tuple[DatabaseEndpoint, str, Mapping[str, Any], float],
    statement: str,
    params: Params,
    readers: int,
    behaviour: Mapping[str, Any],
) -> ConcurrentReads:
    endpoint, namespace, cache_arguments, ttl = servers
    database, valkey = Database(endpoint, namespace, pool_min=1), redis.Redis(**cache_arguments)
    clients: Any = SimpleNamespace(
        database=database, valkey=valkey, namespace=namespace, default_ttl=ttl
    )
    cache = QueryCache(clients, **behaviour)
    database.query("SELECT 1")  # connected, so that the question alone is seen
    valkey.ping()
    _gate.wait(READY_S)
    due: list[float] = []
    together = threading.Barrier(readers, lambda: due.append(time.perf_counter()))

    def ask(_: int) -> Moment:
        together.wait(READY_S)
        # A thread that gets its turn late has waited as well.
        return moment(lambda: cache.fetch(statement, params).source, due[0])

    with ThreadPoolExecutor(readers) as threads:
        moments = list(threads.map(ask, range(readers)))
    return ConcurrentReads(moments, database.stats().queries - 1)
