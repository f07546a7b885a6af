"""Aurora DSQL as a client meets it: TLS only, a token as the password, DSQL's rules by the server.

In front PostgreSQL's protocol, version 3, as far as psycopg2 speaks it: simple queries, and COPY
from the client. Behind, for each client, a connection to the local PostgreSQL that keeps the rules.
Run as a program, with what it needs to know as JSON on standard input; it ends when that is closed.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import re
import socket
import socketserver
import ssl
import struct
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import psycopg2
from psycopg2.extensions import new_type, register_type, string_types
from standing import Identities, allowed, run

from workshop_lib.dsql import RuledConnection, RuledCursor, set_rules

SSL_REQUEST, CANCEL_REQUEST, VERSION_3 = 80877103, 80877102, 196608
TLS_RECORD = b"\x16"
REPORTED = (
    "server_version", "server_encoding", "client_encoding", "DateStyle", "TimeZone",
    "integer_datetimes", "standard_conforming_strings",
)  # fmt: skip
STATES = {0: b"I", 1: b"T", 2: b"T", 3: b"E"}
COPY_IN = re.compile(r"\s*copy\b.*\bfrom\s+stdin\b", re.IGNORECASE | re.DOTALL)
GRANTED = re.compile(r"""AWS IAM GRANT "?(\w+)"? TO '([^']+)'""")
"""Who may sign in as whom. What users own is not told apart: behind them all is one."""
DENIED = "unable to accept connection, access denied"
ALL_KINDS = new_type(tuple(string_types), "AS_SENT", lambda value, _: value)


class GoneError(Exception):
    """The client is done, one way or the other."""


class RefusedError(Exception):
    """The client is not let in."""


class Client(socketserver.BaseRequestHandler):
    """One client's connection."""

    server: Server

    def handle(self) -> None:
        try:
            self._secure()
            self._welcome()
            try:
                while True:
                    self._serve()
            finally:
                self._behind.close()
        except RefusedError as error:
            self._send(self._error("FATAL", "28000", str(error)))
        except (GoneError, OSError):
            pass

    def _secure(self) -> None:
        """Nothing is said in the clear. (libpq asks first, or begins with TLS at once.)"""
        raw = self.request
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if raw.recv(1, socket.MSG_PEEK) != TLS_RECORD:
            length, code = struct.unpack("!ii", self._exactly(raw, 8))
            if code == CANCEL_REQUEST:
                self.server.cancel(*struct.unpack("!ii", self._exactly(raw, length - 8)))
                raise GoneError
            if code != SSL_REQUEST:
                raise RefusedError("unable to accept connection, sslmode=require is needed")
            raw.sendall(b"S")
        self.request = self.server.tls.wrap_socket(raw, server_side=True)
        self._file = self.request.makefile("rb")

    def _welcome(self) -> None:
        (length,) = struct.unpack("!i", self._read(4))
        body = self._read(length - 4)
        (code,) = struct.unpack("!i", body[:4])
        if code == CANCEL_REQUEST:
            self.server.cancel(*struct.unpack("!ii", body[4:12]))
            raise GoneError
        assert code == VERSION_3, code
        words = body[4:].decode().split("\0")
        asked = dict(zip(words[::2], words[1::2], strict=False))
        self._send(_message(b"R", struct.pack("!i", 3)))
        kind, password = self._message()
        assert kind == b"p", kind
        self.server.let_in(asked, password.rstrip(b"\0").decode())
        self._behind = self.server.connect()
        reported = {name: self._behind.get_parameter_status(name) for name in REPORTED}
        pid = self._behind.info.backend_pid
        self._send(
            _message(b"R", struct.pack("!i", 0)),
            *(_message(b"S", _text(k) + _text(v)) for k, v in reported.items() if v),
            _message(b"K", struct.pack("!ii", pid, self.server.remember(pid, self._behind))),
            self._ready(),
        )

    def _serve(self) -> None:
        """Answer one request."""
        kind, body = self._message()
        if kind == b"X":
            raise GoneError
        if kind != b"Q":
            said = f"the stand-in does not speak message {kind!r}"
            self._send(self._error("FATAL", "0A000", said))
            raise GoneError
        statement = body[:-1].decode()
        if granted := GRANTED.fullmatch(statement):
            self.server.mappings.add(granted.groups())
            self._send(_message(b"C", _text("AWS IAM GRANT")), self._ready())
            return
        statement = statement.replace("sys.iam_pg_role_mappings", self.server.mapping_rows())
        with self._behind.cursor() as cursor:
            try:
                if COPY_IN.match(statement):
                    self._copy(cursor, statement)
                else:
                    cursor.execute(statement)
                answer = _answer(cursor)
            except psycopg2.Error as error:
                answer = [self._said(error)]
        if self._behind.closed:
            self._send(*answer)
            raise GoneError
        self._send(*answer, self._ready())

    def _copy(self, cursor: Any, statement: str) -> None:
        self._send(_message(b"G", struct.pack("!bh", 0, 0)))
        data = io.BytesIO()
        while True:
            kind, body = self._message()
            if kind == b"d":
                data.write(body)
            elif kind == b"c":
                break
            elif kind == b"f":
                raise psycopg2.errors.QueryCanceled("COPY from stdin failed")
        data.seek(0)
        cursor.copy_expert(statement, data)

    def _said(self, error: psycopg2.Error) -> bytes:
        diag = error.diag
        severity = "FATAL" if self._behind.closed else "ERROR"
        return self._error(
            severity,
            error.pgcode or "XX000",
            diag.message_primary or str(error).strip() or "connection lost",
            detail=diag.message_detail,
            hint=diag.message_hint,
        )

    def _error(self, severity: str, code: str, message: str, **more: str | None) -> bytes:
        fields = {"S": severity, "V": severity, "C": code, "M": message}
        fields |= {"DH"[name == "hint"]: value for name, value in more.items() if value}
        body = b"".join(key.encode() + _text(value) for key, value in fields.items())
        return _message(b"E", body + b"\0")

    def _ready(self) -> bytes:
        return _message(b"Z", STATES[self._behind.get_transaction_status()])

    def _message(self) -> tuple[bytes, bytes]:
        kind = self._read(1)
        (length,) = struct.unpack("!i", self._read(4))
        return kind, self._read(length - 4)

    def _read(self, count: int) -> bytes:
        found: bytes = self._file.read(count)
        if len(found) < count:
            raise GoneError
        return found

    @staticmethod
    def _exactly(raw: socket.socket, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = raw.recv(count - len(found))
            if not more:
                raise GoneError
            found += more
        return found

    def _send(self, *messages: bytes) -> None:
        self.request.sendall(b"".join(messages))


class Server(socketserver.ThreadingTCPServer):
    """A cluster's endpoint.

    Args:
        told: what standard input said: `certificate`, `key`, `engine` (arguments of psycopg2 for
            the local PostgreSQL), `identities`.

    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Client)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.set_alpn_protocols(["postgresql"])
        self.tls.load_cert_chain(told["certificate"], told["key"])
        self.engine, self.identities = told["engine"], Identities(Path(told["identities"]))
        self._known: dict[int, tuple[int, Any]] = {}
        self.mappings: set[tuple[str, ...]] = set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not believe our certificate is no fault of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def connect(self) -> Any:
        opened = psycopg2.connect(
            **self.engine, connection_factory=RuledConnection, cursor_factory=RuledCursor
        )
        opened.autocommit = True
        set_rules(opened, on=True)
        register_type(ALL_KINDS, opened)
        return opened

    def remember(self, pid: int, connection: Any) -> int:
        secret = int.from_bytes(os.urandom(3))
        self._known[pid] = (secret, connection)
        return secret

    def cancel(self, pid: int, secret: int) -> None:
        known = self._known.get(pid)
        if known and known[0] == secret:
            known[1].cancel()

    def mapping_rows(self) -> str:
        rows = "".join(f" UNION ALL SELECT '{user}', '{arn}'" for user, arn in self.mappings)
        return f"(SELECT NULL AS pg_role_name, NULL AS arn{rows}) AS mappings"

    def let_in(self, asked: dict[str, str], token: str) -> None:
        """Raises RefusedError unless the token is good for this user, now, here."""
        user = asked.get("user", "")
        known = {"admin", *(name for name, _ in self.mappings)}
        if user not in known or asked.get("database") != "postgres":
            raise RefusedError(f"{DENIED}: no such user or database")
        action = "DbConnectAdmin" if user == "admin" else "DbConnect"
        address = urlsplit(f"https://{token}")
        fields = dict(parse_qsl(address.query, keep_blank_values=True))
        try:
            key, _, region, service, _ = fields["X-Amz-Credential"].split("/")
            made = datetime.strptime(fields["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            life, given = int(fields["X-Amz-Expires"]), fields.pop("X-Amz-Signature")
        except (KeyError, ValueError):
            raise RefusedError(DENIED) from None
        identity = self.identities.of(key)
        cluster = str(address.hostname).split(".", 1)[0]
        good = (
            identity is not None
            and identity.state == "good"
            and service == "dsql"
            and fields["Action"] == action
            and 0 <= (datetime.now(UTC) - made).total_seconds() + 60 < life + 60
            and hmac.compare_digest(given, _sign(address.netloc, fields, identity.secret))
            and allowed(identity, f"dsql:{action}", f"dsql:{region}:cluster/{cluster}")
        )
        if not good:
            raise RefusedError(DENIED)


def _sign(host: str, fields: dict[str, str], secret: str) -> str:
    """Signature Version 4 of a presigned GET (IAM User Guide, "Create a signed request")."""
    query = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in sorted(fields.items()))
    empty = hashlib.sha256(b"").hexdigest()
    request = f"GET\n/\n{query}\nhost:{host}\n\nhost\n{empty}"
    scope = fields["X-Amz-Credential"].split("/", 1)[1]
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{fields['X-Amz-Date']}\n{scope}\n{digest}"
    key = f"AWS4{secret}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return key.hex()


def _answer(cursor: Any) -> list[bytes]:
    if cursor.description is None:
        return [_message(b"C", _text(cursor.statusmessage))]
    fields = [
        _text(column.name)
        + struct.pack("!ihihih", 0, 0, column.type_code, column.internal_size or -1, -1, 0)
        for column in cursor.description
    ]
    head = _message(b"T", struct.pack("!h", len(fields)) + b"".join(fields))
    rows = [_row(row) for row in cursor.fetchall()]
    return [head, *rows, _message(b"C", _text(cursor.statusmessage))]


def _row(row: tuple[str | None, ...]) -> bytes:
    parts = [struct.pack("!h", len(row))]
    for value in row:
        if value is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            sent = value.encode()
            parts += (struct.pack("!i", len(sent)), sent)
    return _message(b"D", b"".join(parts))


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


if __name__ == "__main__":
    server = Server(json.loads(sys.stdin.readline()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run(server.server_address[1])
