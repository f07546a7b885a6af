"""A client of the real cache that notes its round trips, and whose connection can break."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import hiredis
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost, ResponseError
from redis.retry import Retry

Trips: TypeAlias = list[list[str]]
"""For each round trip, the names of the commands that were sent in it."""

GREETINGS = {"HELLO", "AUTH", "CLIENT", "SELECT", "PING"}


@contextmanager
def watched(
    ws: Any, trips: Trips, most: float = math.inf, before: Callable[[], object] = int
) -> Iterator[Redis]:
    """A client that notes its round trips; its connection breaks after `most` commands.

    The server carries out those commands, even in the middle of a pipeline, and hears no more: as
    when the program is killed at that moment.

    Args:
        ws: the open workshop.
        trips: where each round trip is noted.
        most: so many commands arrive.
        before: called before each round trip.

    """
    client = Redis(**{**ws.endpoints.cache.arguments, "retry": Retry(NoBackoff(), 0)})
    pool = client.connection_pool
    plain: Any = pool.connection_class
    left = most

    class Watched(plain):  # type: ignore[misc]  # TCP or TLS, as the workshop's own client
        def send_packed_command(self, command: Iterable[bytes], check_health: bool = True) -> None:
            nonlocal left
            reader = hiredis.Reader()
            reader.feed(b"".join(command))
            commands = list(iter(reader.gets, False))
            names = [parts[0].decode().upper() for parts in commands]
            if names[0] in GREETINGS:  # the client's own, when it connects
                super().send_packed_command(self.pack_commands(commands), check_health)
                return
            sent = commands[: int(min(left, len(commands)))]
            left -= len(sent)
            if sent:
                before()
                trips.append(names[: len(sent)])
                super().send_packed_command(self.pack_commands(sent), check_health)
            if len(sent) < len(commands):
                for _ in sent:  # an answer to each: the server has done them
                    with suppress(ResponseError):
                        self.read_response()
                self.disconnect()
                raise ConnectionLost("the check has cut the connection here")

    pool.connection_class = Watched
    try:
        yield client
    finally:
        client.close()


def remove_keys(ws: Any, prefix: str) -> None:
    """Delete every key that begins so."""
    for key in list(ws.valkey.scan_iter(match=f"{prefix}*", count=500)):
        ws.valkey.delete(key)
