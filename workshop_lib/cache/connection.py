"""Connections to the cache server that are kept from one command to the next.

For each command redis-py's client takes one from its pool, tests it, and records metrics: 40 % of
the time of a GET. A kept connection is lent to one caller at a time, as in the pool, and never
again if its answers were not read to the end.
"""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakKeyDictionary

from redis import ConnectionPool, Redis
from redis.exceptions import ConnectionError as LostConnection, ResponseError

Command = tuple[Any, ...]

MAX_KEPT = 8
"""Per client, however many threads there are; each counts among its pool's max_connections."""

_kept: WeakKeyDictionary[Redis, list[tuple[ConnectionPool, Any]]] = WeakKeyDictionary()
"""Idle ones, by client; taken and put back in one atomic step each."""
os.register_at_fork(after_in_child=_kept.clear)  # they are the parent's


def ask(client: Any, *commands: Command) -> list[Any]:
    """The answers to some commands that are sent at once; in the place of one, its ResponseError.

    Raises:
        RedisError: the server did not answer all of them.

    """
    if type(client) is not Redis:  # another class may send its commands elsewhere, as a cluster's
        return _ask_by_client(client, commands)
    idle = _kept.setdefault(client, [])
    pool, connection = _take(client, idle)
    answers = None
    try:
        connection.connect()  # where it is not; and by the present route to the server
        if len(commands) == 1:
            connection.send_command(*commands[0])
        else:
            connection.send_packed_command(connection.pack_commands(commands))
        answers = [_answer(connection) for _ in commands]
    except LostConnection:  # perhaps closed by the server while it was idle
        pass
    finally:
        if answers is None:  # an Interrupt, too, leaves answers behind
            connection.disconnect()
        if answers is not None and len(idle) < min(MAX_KEPT, pool.max_connections // 2):
            idle.append((pool, connection))
        else:
            pool.release(connection)
    return _ask_by_client(client, commands) if answers is None else answers


def do(client: Any, *commands: Command) -> list[Any]:
    """As `ask`. Raises the first of the answers that is an error."""
    answers = ask(client, *commands)
    for error in answers:
        if isinstance(error, ResponseError):
            raise error
    return answers


def _take(client: Redis, idle: list[tuple[ConnectionPool, Any]]) -> tuple[ConnectionPool, Any]:
    """A connection that is kept, or a new one of the client's present pool."""
    while idle:
        try:
            pool, connection = idle.pop()
        except IndexError:  # another thread was quicker
            break
        if pool is client.connection_pool:
            return pool, connection
    pool = client.connection_pool
    return pool, pool.get_connection()


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def _ask_by_client(client: Any, commands: tuple[Command, ...]) -> list[Any]:
    """The same in the client's own way, with its own rules for trying again."""
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    answers: list[Any] = pipeline.execute(raise_on_error=False)
    return answers
