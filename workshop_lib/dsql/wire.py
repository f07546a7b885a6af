"""PostgreSQL's protocol, version 3, as far as a server in the middle needs it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from collections.abc import Callable

from workshop_lib.dsql.allowed import Refusal

VERSION_3, CANCEL, SSL, GSS = 196_608, 80_877_102, 80_877_103, 80_877_104
OK, CLEARTEXT = 0, 3
BUFFER = 1 << 18
MAX_SIGN_IN = 20_000
"""Bytes of a message before its sender is signed in; a token has some hundreds."""
MAX_MESSAGE = 17 * 1024 * 1024
"""Bytes of any other; a transaction may have 10 MiB."""


class ProtocolError(Exception):
    """A client does not speak the protocol, or is refused: a refusal to pass on."""

    def __init__(self, said: str | Refusal) -> None:
        super().__init__(said)
        self.refusal = Refusal("08P01", said) if isinstance(said, str) else said


class Side(StreamReaderProtocol):
    """One side of a session, as two streams.

    Attributes:
        reader, writer: the streams.
        when_gone: called when the other end has closed the connection.

    """

    writer: StreamWriter

    def __init__(self) -> None:
        self.reader = StreamReader(limit=BUFFER)
        self.when_gone: Callable[[], object] = bool
        super().__init__(self.reader)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self.writer = StreamWriter(transport, self, self.reader, loop)  # type: ignore[arg-type]

    def eof_received(self) -> bool:
        """End also where the other end has only stopped talking."""
        super().eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        super().connection_lost(exc)
        self.when_gone()


async def open_side(connected: socket.socket, tls: ssl.SSLContext | None = None) -> Side:
    """Take over a connected socket; with a certificate, as the server of TLS."""
    loop = asyncio.get_running_loop()
    _, side = await loop.connect_accepted_socket(Side, connected, ssl=tls)
    return side


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message."""
    return kind + struct.pack("!i", len(body) + 4) + body


def query(sql: str) -> bytes:
    """A string of statements to be run."""
    return message(b"Q", sql.encode() + b"\0")


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
