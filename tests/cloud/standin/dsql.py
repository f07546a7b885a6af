"""Aurora DSQL as a client meets it: TLS only, a token as the password, DSQL's rules by the server.

In front PostgreSQL's protocol, version 3, as far as psycopg2 speaks it: simple queries, and COPY
from the client. Behind, for each client, a connection to the local PostgreSQL that keeps the rules.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import re
import socket
import socketserver
import ssl
import struct
import sys
import threading
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import psycopg2
from aws import Account
from psycopg2.extensions import new_type, register_type, string_types

from workshop_lib.dsql import RuledConnection, RuledCursor, set_rules

SSL_REQUEST, VERSION_3 = 80877103, 196608
TLS_RECORD = b"\x16"
REPORTED = (
    "server_version", "server_encoding", "client_encoding", "DateStyle", "TimeZone",
    "integer_datetimes", "standard_conforming_strings",
)  # fmt: skip
STATES = {0: b"I", 1: b"T", 2: b"T", 3: b"E"}
COPY_IN = re.compile(r"\s*copy\b.*\bfrom\s+stdin\b", re.IGNORECASE | re.DOTALL)
IAM_GRANT = re.compile(r"""\s*AWS IAM GRANT "?(\w+)"? TO '([^']+)'\s*;?\s*""", re.IGNORECASE)
MAPPINGS = "sys.iam_pg_role_mappings"
NEW_SCHEMA = re.compile(r"\s*create\s+schema\b", re.IGNORECASE)
SCHEMAS = "SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_'"
MAX_SCHEMAS = 10
DENIED = "unable to accept connection, access denied"
WAKING = "unable to accept connection, waking up cluster"
ALL_KINDS = new_type(tuple(string_types), "AS_SENT", lambda value, _: value)


class RefusedError(Exception):
    """The client is not let in."""


class Client(socketserver.BaseRequestHandler):
    """One client's connection."""

    server: Server

    def handle(self) -> None:
        with (
            suppress(EOFError, OSError),
            self._secured() as self.request,
            self.request.makefile("rb") as self._file,
        ):
            try:
                self._welcome()
            except RefusedError as error:
                self._send(_error("FATAL", "28000", str(error)))
                return
            with closing(self._behind):
                while not self._behind.closed:
                    self._serve()

    def _secured(self) -> ssl.SSLSocket:
        """Nothing is said in the clear. (libpq asks first, or begins with TLS at once.)"""
        raw = self.request
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if raw.recv(1, socket.MSG_PEEK) != TLS_RECORD:
            _, code = struct.unpack("!ii", raw.recv(8, socket.MSG_WAITALL).ljust(8))
            if code != SSL_REQUEST:  # to cancel a statement, for example
                raise EOFError
            raw.sendall(b"S")
        return self.server.tls.wrap_socket(raw, server_side=True)

    def _welcome(self) -> None:
        body = self._body()
        assert struct.unpack("!i", body[:4]) == (VERSION_3,)
        words = body[4:].decode().split("\0")
        asked = dict(zip(words[::2], words[1::2], strict=False))
        self._send(_message(b"R", struct.pack("!i", 3)))
        kind, password = self._message()
        assert kind == b"p", kind
        self._behind = self.server.let_in(asked, password.rstrip(b"\0").decode())
        reported = {name: self._behind.get_parameter_status(name) for name in REPORTED}
        self._send(
            _message(b"R", struct.pack("!i", 0)),
            *(_message(b"S", _text(k) + _text(v)) for k, v in reported.items() if v),
            _message(b"K", struct.pack("!ii", 0, 0)),
            self._ready(),
        )

    def _serve(self) -> None:
        """Answer one request."""
        kind, body = self._message()
        if kind == b"X":
            raise EOFError
        assert kind == b"Q", f"the stand-in does not speak message {kind!r}"
        statement = body[:-1].decode()
        with self._behind.cursor() as cursor:
            try:
                if COPY_IN.match(statement):
                    self._copy(cursor, statement)
                else:
                    cursor.execute(self.server.prepare(statement, cursor))
                answer = _answer(cursor)
            except psycopg2.Error as error:
                diag, severity = error.diag, "FATAL" if self._behind.closed else "ERROR"
                message = diag.message_primary or str(error).strip() or "connection lost"
                more = (("D", diag.message_detail), ("H", diag.message_hint))
                answer = [_error(severity, error.pgcode or "XX000", message, *more)]
        if not self._behind.closed:
            answer.append(self._ready())
        self._send(*answer)

    def _copy(self, cursor: Any, statement: str) -> None:
        self._send(_message(b"G", struct.pack("!bh", 0, 0)))
        data = io.BytesIO()
        kind, body = self._message()
        while kind == b"d":
            data.write(body)
            kind, body = self._message()
        if kind == b"f":
            raise psycopg2.errors.QueryCanceled("COPY from stdin failed")
        data.seek(0)
        cursor.copy_expert(statement, data)

    def _ready(self) -> bytes:
        return _message(b"Z", STATES[self._behind.get_transaction_status()])

    def _message(self) -> tuple[bytes, bytes]:
        return self._read(1), self._body()

    def _body(self) -> bytes:
        return self._read(struct.unpack("!i", self._read(4))[0] - 4)

    def _read(self, count: int) -> bytes:
        found: bytes = self._file.read(count)
        if len(found) < count:
            raise EOFError
        return found

    def _send(self, *messages: bytes) -> None:
        self.request.sendall(b"".join(messages))


class Server(socketserver.ThreadingTCPServer):
    """A cluster's endpoint, running.

    Args:
        account: who may sign in.
        engine: arguments of psycopg2 for the local PostgreSQL.

    Attributes:
        tls: the certificate that it shows.
        asleep: so many connections more are refused because the cluster is being woken.
        mappings: who besides admin may sign in: users, each with the ARN of an IAM role.

    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, account: Account, engine: dict[str, Any], tls: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Client)
        self.account, self.engine, self.tls = account, engine, tls
        self.asleep = 0
        self.mappings: set[tuple[str, str]] = set()
        with closing(self._connect()) as connection, connection.cursor() as cursor:
            cursor.execute(SCHEMAS)
            (self.schemas_of_others,) = map(int, cursor.fetchone())
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """A client that does not believe our certificate is no fault of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(*_)

    def _connect(self, user: str = "admin") -> Any:
        opened = psycopg2.connect(
            **self.engine, connection_factory=RuledConnection, cursor_factory=RuledCursor
        )
        opened.autocommit = True
        set_rules(opened, on=True)
        register_type(ALL_KINDS, opened)
        if user != "admin":
            opened.cursor().execute(f'SET ROLE "{user}"')
        return opened

    def prepare(self, statement: str, cursor: Any) -> str:
        """What the local server is to do for a statement that it does not know, or know enough."""
        granted = IAM_GRANT.fullmatch(statement)
        if granted:
            user, role = granted.groups()
            self.mappings.add((user, role))
            return f'GRANT "{user}" TO CURRENT_USER WITH SET TRUE'
        if NEW_SCHEMA.match(statement):  # it has those of others, too
            cursor.execute(SCHEMAS)
            (count,) = map(int, cursor.fetchone())
            if count - self.schemas_of_others >= MAX_SCHEMAS:
                says = f"more than {MAX_SCHEMAS} schemas not allowed"
                return f"SELECT dsql_rules.refuse('54000', '{says}')"
        rows = "".join(f" UNION SELECT '{user}', '{role}'" for user, role in self.mappings)
        known = f"(SELECT NULL pg_role_name, NULL arn{rows}) mappings"
        return statement.replace(MAPPINGS, known)

    def let_in(self, asked: dict[str, str], token: str) -> Any:
        """A connection for a client; raises RefusedError unless the token is good, now and here."""
        if self.asleep:
            self.asleep -= 1
            raise RefusedError(WAKING)
        user = asked.get("user", "")
        action = "DbConnectAdmin" if user == "admin" else "DbConnect"
        address = urlsplit(f"https://{token}")
        fields = dict(parse_qsl(address.query, keep_blank_values=True))
        try:
            key, _, region, service, _ = fields["X-Amz-Credential"].split("/")
            made = datetime.strptime(fields["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            life, given = int(fields["X-Amz-Expires"]), fields.pop("X-Amz-Signature")
        except (KeyError, ValueError):
            raise RefusedError(DENIED) from None
        identity = self.account.of(key)
        cluster = str(address.hostname).split(".", 1)[0]
        good = (
            identity is not None
            and not identity.expired
            and asked.get("database") == "postgres"
            and service == "dsql"
            and fields["Action"] == action
            and 0 <= (datetime.now(UTC) - made).total_seconds() + 60 < life + 60
            and hmac.compare_digest(given, _sign(address.netloc, fields, identity.secret))
            and identity.may(f"dsql:{action}", f"dsql:{region}:cluster/{cluster}")
            and (user == "admin" or (user, identity.role) in self.mappings)
        )
        if not good:
            raise RefusedError(DENIED)
        return self._connect(user)


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
    end = _message(b"C", _text(cursor.statusmessage))
    if cursor.description is None:
        return [end]
    fields = [
        _text(column.name)
        + struct.pack("!ihihih", 0, 0, column.type_code, column.internal_size or -1, -1, 0)
        for column in cursor.description
    ]
    head = _message(b"T", struct.pack("!h", len(fields)) + b"".join(fields))
    return [head, *map(_row, cursor), end]


def _row(row: tuple[str | None, ...]) -> bytes:
    parts = [struct.pack("!h", len(row))]
    for value in row:
        if value is None:
            parts.append(struct.pack("!i", -1))
        else:
            sent = value.encode()
            parts += (struct.pack("!i", len(sent)), sent)
    return _message(b"D", b"".join(parts))


def _error(severity: str, code: str, message: str, *more: tuple[str, str | None]) -> bytes:
    fields = (("S", severity), ("V", severity), ("C", code), ("M", message), *more)
    body = b"".join(name.encode() + _text(value) for name, value in fields if value)
    return _message(b"E", body + b"\0")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _text(value: str) -> bytes:
    return value.encode() + b"\0"
