"""PostgreSQL's protocol, version 3, as far as a server in the middle needs it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import struct
from asyncio import IncompleteReadError, StreamReader, StreamWriter, open_connection
from collections.abc import Iterator

from workshop_lib.dsql.allowed import Refusal

VERSION_3, CANCEL, SSL, GSS = 196_608, 80_877_102, 80_877_103, 80_877_104
OK, CLEARTEXT, SASL, SASL_CONTINUE, SASL_FINAL = 0, 3, 10, 11, 12
MAX_SIGN_IN = 20_000
"""Bytes of a message before anybody is signed in; a token has some hundreds."""
MAX_MESSAGE = 17 * 1024 * 1024
"""Bytes of any other; a transaction may have 10 MiB."""


class ProtocolError(Exception):
    """The other side does not speak the protocol, or refuses: a refusal to pass on."""

    def __init__(self, said: str | Refusal) -> None:
        super().__init__(said)
        self.refusal = Refusal("08P01", said) if isinstance(said, str) else said


def message(kind: bytes, body: bytes = b"") -> bytes:
    """One message."""
    return kind + struct.pack("!i", len(body) + 4) + body


def error(refusal: Refusal, severity: str = "FATAL", **more: str) -> bytes:
    """An ErrorResponse. `more`: fields by their letters, D for detail, H for hint."""
    fields = {"S": severity, "V": severity, "C": refusal.code, "M": refusal.message, **more}
    return message(b"E", b"".join(f"{k}{v}\0".encode() for k, v in fields.items()) + b"\0")


def error_fields(body: bytes) -> dict[str, str]:
    """What an ErrorResponse says, by its letters."""
    parts = body.decode(errors="replace").split("\0")
    return {part[0]: part[1:] for part in parts if part}


def start_up(parameters: dict[str, str]) -> bytes:
    """The first message of a client: who signs in to what, and settings."""
    text = b"".join(f"{k}\0{v}\0".encode() for k, v in parameters.items())
    return struct.pack("!ii", len(text) + 9, VERSION_3) + text + b"\0"


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


async def connect(
    address: tuple[str, int], password: str, parameters: dict[str, str]
) -> tuple[StreamReader, StreamWriter]:
    """Sign in to a PostgreSQL that proves to know the password, too (RFC 5802 and 7677).

    Returns:
        The connection; what the server says after the sign-in is still to be read.

    Raises:
        ProtocolError: it refuses, or is no such server.
        OSError: it is not there.

    """
    reader, writer = await open_connection(*address, limit=1 << 18)
    try:
        writer.write(start_up(parameters))
        nonce = base64.b64encode(secrets.token_bytes(18)).decode()
        bare = f"n=,r={nonce}"
        await _expect(reader, SASL)
        first = f"n,,{bare}".encode()
        writer.write(message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first))
        challenge = (await _expect(reader, SASL_CONTINUE)).decode()
        said = dict(part.split("=", 1) for part in challenge.split(","))
        if not said["r"].startswith(nonce):
            raise ProtocolError("the server answers to somebody else")
        salt, rounds = base64.b64decode(said["s"]), int(said["i"])
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
        final = f"c=biws,r={said['r']}"
        proven = f"{bare},{challenge},{final}".encode()
        client_key = _hmac(salted, b"Client Key")
        signed = _hmac(hashlib.sha256(client_key).digest(), proven)
        proof = bytes(a ^ b for a, b in zip(client_key, signed, strict=True))
        writer.write(message(b"p", f"{final},p={base64.b64encode(proof).decode()}".encode()))
        verifier = base64.b64encode(_hmac(_hmac(salted, b"Server Key"), proven))
        if not hmac.compare_digest(await _expect(reader, SASL_FINAL), b"v=" + verifier):
            raise ProtocolError("the server does not know the password")
        await _expect(reader, OK)
    except (KeyError, ValueError, IncompleteReadError):
        writer.close()
        raise ProtocolError("this is not a PostgreSQL server that speaks SCRAM-SHA-256") from None
    except BaseException:
        writer.close()
        raise
    return reader, writer


async def ask(server: tuple[StreamReader, StreamWriter], sql: str) -> list[list[str]]:
    """The rows of one statement, as texts.

    Raises:
        ProtocolError: what the server objects.

    """
    reader, writer = server
    writer.write(message(b"Q", sql.encode() + b"\0"))
    rows, objection = [], None
    while True:
        kind, body = await receive(reader)
        if kind == b"D":
            rows.append(list(values(body)))
        elif kind == b"E":
            fields = error_fields(body)
            objection = ProtocolError(Refusal(fields["C"], fields["M"]))
        elif kind == b"Z":
            if objection:
                raise objection
            return rows


def values(body: bytes) -> Iterator[str]:
    """The values of a DataRow, none of which may be NULL."""
    place = 2
    while place < len(body):
        (size,) = struct.unpack_from("!i", body, place)
        yield body[place + 4 : place + 4 + size].decode()
        place += 4 + size


async def ready(server: tuple[StreamReader, StreamWriter]) -> tuple[StreamReader, StreamWriter]:
    """Wait until a server that has let us in takes statements."""
    while (await receive(server[0]))[0] != b"Z":
        pass
    return server


async def _expect(reader: StreamReader, wanted: int) -> bytes:
    """The data of the server's next word in the sign-in, which has to be this one."""
    kind, body = await receive(reader)
    if kind == b"E":
        fields = error_fields(body)
        raise ProtocolError(Refusal(fields["C"], fields["M"]))
    if kind != b"R" or struct.unpack("!i", body[:4]) != (wanted,):
        raise ProtocolError("the server does not ask for SCRAM-SHA-256")
    return body[4:]


def _hmac(key: bytes, text: bytes) -> bytes:
    return hmac.new(key, text, "sha256").digest()
