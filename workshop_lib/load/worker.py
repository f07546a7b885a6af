"""One worker of a load test: the same handler in a local process and as an AWS Lambda function."""

from __future__ import annotations

import json
import logging
import math
import os
import pickle
import sys
import time
from typing import Any, Protocol

import msgspec

from workshop_lib.errors import SettingsError, WorkshopError
from workshop_lib.load.clients import ClientConfig, Clients, ClientsByNamespace
from workshop_lib.load.insert_worker import insert
from workshop_lib.load.jobs import InsertJob, Ping, Ready, StreamJob, WarmJob
from workshop_lib.load.messages import process_batch
from workshop_lib.load.stream_worker import serve, warm
from workshop_lib.orphans import exit_with_parent
from workshop_lib.services import DatabaseEndpoint
from workshop_lib.services.endpoints import (
    external_cache,
    external_database,
    external_messaging,
    external_reader,
)
from workshop_lib.settings import Settings, load_settings

SPARE_S = 1.0
"""A Lambda function stops beginning statements so long before it would be ended."""


class Context(Protocol):
    """What AWS Lambda hands over beside the event; as much of it as is used here."""

    def get_remaining_time_in_millis(self) -> int:
        """Until the function is ended, milliseconds."""


class Worker:
    """What one process or one Lambda execution environment keeps from job to job."""

    def __init__(self, config: ClientConfig) -> None:
        self._clients = ClientsByNamespace(config)

    @property
    def clients(self) -> Clients:
        """What it has for its own namespace."""
        return self._clients.of()

    def do(self, event: Any, until: float | None = None) -> dict[str, Any]:
        """Do a job, or process a batch of messages.

        Args:
            event: the job as JSON carries it, or what SQS hands to a function.
            until: when this worker will be ended, by `time.monotonic()`; None if it will not.

        Raises:
            WorkshopError: the event is neither; the text says why.

        """
        end = math.inf if until is None else until - SPARE_S
        if isinstance(event, dict) and "Records" in event:
            return process_batch(event["Records"], self._clients.of, end)
        try:
            job = msgspec.convert(event, Ping | InsertJob | StreamJob | WarmJob)
        except msgspec.ValidationError as error:
            raise WorkshopError(f"This is no job for a load worker: {error}.") from None
        found: dict[str, Any] = msgspec.to_builtins(self._answer(job, end))
        return found

    def close(self) -> None:
        """Let go of everything."""
        self._clients.close()

    def _answer(self, job: Ping | InsertJob | StreamJob | WarmJob, end: float) -> Any:
        clients = self._clients.of(job.namespace)
        if isinstance(job, InsertJob):
            return insert(job, clients, min(end, time.monotonic() + job.time_limit_s))
        if isinstance(job, StreamJob):
            return serve(job, clients)
        if isinstance(job, WarmJob):
            return warm(job, clients)
        clients.database.query("SELECT 1")
        memory = os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE")
        return Ready(
            ready=True,
            memory_mb=int(memory) if memory else None,
            reader="" if clients.reader is clients.database else clients.reader.endpoint.host,
        )


_worker: Worker | None = None


def equip(config: ClientConfig) -> None:
    """Have this process's worker use these services, rather than what the environment names."""
    global _worker  # noqa: PLW0603 -- one worker a process, as in a Lambda execution environment
    if _worker is not None:
        _worker.close()
    _worker = Worker(config)


def serve_parent() -> None:
    """Work as a process of LocalWorkers: jobs and answers are lines of JSON."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what others print is no answer
    config, parent = pickle.load(sys.stdin.buffer)  # noqa: S301 -- from who started this process
    exit_with_parent(parent)
    equip(config)
    for line in sys.stdin.buffer:
        try:
            said = handler(json.loads(line)), ""
        except Exception as error:  # noqa: BLE001 -- in words: not every error can be sent
            said = {}, f"{type(error).__name__}: {error}"
        answers.write(msgspec.json.encode(said) + b"\n")
        answers.flush()


def handler(event: Any, context: Context | None = None) -> dict[str, Any]:
    """What AWS Lambda calls, and a local worker process as well.

    Args:
        event: a job as `jobs` describes them, or messages of a queue.
        context: of the Lambda function; None in a local process.

    Raises:
        WorkshopError: the event is no job, or the settings in the environment are not usable.

    """
    if _worker is None:
        settings = load_settings().values
        logging.getLogger().setLevel(os.environ.get("LOG_LEVEL", "warn").upper())
        database, cache = named_database(settings), external_cache(settings)
        equip(
            ClientConfig(
                database,
                settings.workshop_namespace,
                reader=external_reader(settings),
                cache=cache.arguments if cache else None,
                messaging=external_messaging(settings),
            )
        )
    assert _worker is not None  # noqa: S101 -- for mypy
    until = None
    if context is not None:
        until = time.monotonic() + context.get_remaining_time_in_millis() / 1e3
    return _worker.do(event, until)


def named_database(settings: Settings) -> DatabaseEndpoint:
    """The database that a worker on another machine is to use.

    Raises:
        SettingsError: the settings name none, or not in its form.

    """
    found = external_database(settings)
    if found is None:
        raise SettingsError(
            "This worker is not told which database to use. On AWS Lambda, set DSQL_ENDPOINT in "
            "the function's environment (AWS_REGION is there already); elsewhere DSQL_ENDPOINT "
            "with AWS_REGION, or DATABASE_URL. Workers on this machine get it from LocalWorkers."
        )
    return found
