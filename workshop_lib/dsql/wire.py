"""PostgreSQL's protocol, version 3, as far as a server in the middle needs it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from workshop_lib.dsql.allowed import Refusal

VERSION_3, CANCEL, SSL, GSS = 196_608, 80_877_102, 80_877_103, 80_877_104
OK, CLEARTEXT = 0, 3
BUFFER = 1 << 18
OUR_NAME = b"dsql_rules\0"
"""Of the statements and portals that the client did not ask for."""
MAX_SIGN_IN = 20_000
"""Bytes of a message before its sender is signed in; a token has some hundreds."""
MAX_MESSAGE = 17 * 1024 * 1024
"""Bytes of any other; a transaction may have 10 MiB."""


class ProtocolError(Exception):
    """A client does not speak the protocol, or is refused: a refusal to pass on."""

    def __init__(self, said: str | Refusal) -> None:
        super().__init__(said)
        self.refusal = Refusal("08P01", said) if isinstance(said, str) else said


class Side(NamedTuple):
    """One side of a session."""

    reader: StreamReader
    writer: StreamWriter


async def open_side(connected: socket.socket, tls: ssl.SSLContext | None = None) -> Side:
    """Take over a connected socket; with a certificate, as the server of TLS."""
    loop, reader = asyncio.get_running_loop(), StreamReader(limit=BUFFER)
    transport, protocol = await loop.connect_accepted_socket(
        lambda: StreamReaderProtocol(reader), connected, ssl=tls
    )
    return Side(reader, StreamWriter(transport, protocol, reader, loop))


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message."""
    return kind + struct.pack("!i", len(body) + 4) + body


def prepare(sql: str) -> bytes:
    """Messages that prepare a statement and leave alone what the client has prepared."""
    closed = message(b"C", b"S" + OUR_NAME) + message(b"C", b"P" + OUR_NAME)
    return closed + message(b"P", OUR_NAME + sql.encode() + bytes(3))


def run(sql: str) -> bytes:
    """Messages that prepare a statement and run it."""
    bound = message(b"B", OUR_NAME + OUR_NAME + bytes(6))
    return prepare(sql) + bound + message(b"E", OUR_NAME + bytes(4))


def error(refusal: Refusal, severity: str = "FATAL", **more: str) -> bytes:
    """An ErrorResponse. `more`: fields by their letters, D for detail, H for hint."""
    fields = {"S": severity, "V": severity, "C": refusal.code, "M": refusal.message, **more}
    return message(b"E", b"".join(f"{k}{v}\0".encode() for k, v in fields.items()) + b"\0")


def error_fields(body: bytes) -> dict[str, str]:
    """What an ErrorResponse says, by its letters."""
    fields = body.decode(errors="replace").split("\0")
    return {field[0]: field[1:] for field in fields if field}


def texts(body: bytes, count: int) -> list[bytes]:
    """The texts at the beginning of a message, and the rest of it.

    Raises:
        ProtocolError: there are not so many.

    """
    found = body.split(b"\0", count)
    if len(found) <= count:
        raise ProtocolError("invalid message format")
    return found


def end_of_message(said: bytearray, start: int) -> int:
    """Where the message ends that begins there; 0 while it is not all there."""
    end = start + 1 + int.from_bytes(said[start + 1 : start + 5])
    return end if start + 5 <= len(said) >= end else 0


async def receive_first(read: Callable[[int], Awaitable[bytes]]) -> tuple[int, bytes]:
    """What begins a connection: its code, and what follows.

    Args:
        read: receives so many bytes.

    Raises:
        ProtocolError: it is too long, or nothing of the kind.
        struct.error: the other side is gone.

    """
    length, code = struct.unpack("!ii", await read(8))
    if not 8 <= length <= MAX_SIGN_IN:
        raise ProtocolError("invalid length of startup packet")
    return code, await read(length - 8)


async def receive(reader: StreamReader, limit: int = MAX_MESSAGE) -> tuple[bytes, bytes]:
    """The next message: its kind and body.

    Raises:
        ProtocolError: it is too long, or no message.
        IncompleteReadError: the other side is gone.

    """
    kind, length = struct.unpack("!ci", await reader.readexactly(5))
    if not 4 <= length <= limit:
        raise ProtocolError(f"invalid message length {length}")
    return kind, await reader.readexactly(length - 4)
