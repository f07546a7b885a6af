"""How to call a load worker that is an AWS Lambda function."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from workshop_lib import forks

if TYPE_CHECKING:
    from types_boto3_lambda import LambdaClient

MEMORY_MB = 512
"""Of the stack's load function, where it does not say itself: the template's FunctionMemory."""
CONNECT_S = 5
SPARE_S = 30
"""Between a job's own time limit and ours, seconds: a cold start, and the way there."""
STEP_S = 120
"""Clients differ in their patience by such steps, seconds: so there are few of them."""


class LambdaClients:
    """Clients that call functions, each call once, and give up when no answer can come any more.

    How long a client waits is fixed when it is made; the second one takes two milliseconds.

    Args:
        region: the functions' Region; None for the one that boto3 is configured for.
        at_once: invocations at the same time; each holds a connection until it is answered.
        endpoint_url: of a service that stands in for Lambda.

    """

    def __init__(self, region: str | None, at_once: int, endpoint_url: str | None = None) -> None:
        self._place: dict[str, Any] = {"region_name": region, "endpoint_url": endpoint_url}
        self._at_once = at_once
        self._after_fork()
        forks.tell_child(self)

    def _after_fork(self) -> None:
        """Begin with no clients: their connections would be shared with the parent."""
        self._made: dict[int, LambdaClient] = {}
        self._lock = threading.Lock()
        self._session = boto3.Session()  # of its own: the shared one is not for many threads

    def patient(self, limit_s: float) -> LambdaClient:
        """A client that waits for an answer for so long, and somewhat longer.

        Args:
            limit_s: what the job may take, seconds.

        """
        wait_s = math.ceil((limit_s + SPARE_S) / STEP_S) * STEP_S
        with self._lock:
            if wait_s not in self._made:
                self._made[wait_s] = self._make(wait_s)
            return self._made[wait_s]

    def close(self) -> None:
        """Close their connections."""
        with self._lock:
            for client in self._made.values():
                client.close()

    def _make(self, wait_s: int) -> LambdaClient:
        config = Config(
            connect_timeout=CONNECT_S,
            # Whoever gives up before the function has ended, or tries again, runs the job twice.
            read_timeout=wait_s,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=self._at_once,
            # No byte comes while the function works; a gateway forgets a connection that is silent.
            tcp_keepalive=True,
        )
        return self._session.client("lambda", config=config, **self._place)
