"""The local Aurora DSQL: TLS, tokens and DSQL's dialect, before the local PostgreSQL.

Any client of PostgreSQL connects to it as to a cluster. Each statement is parsed, and what DSQL
does not allow is refused as by the service; what runs, runs on PostgreSQL, which keeps the other
rules (rules.sql). One process serves all clients. Run as a program:
`python -m workshop_lib.dsql.front STATE_FOLDER PORT`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
import ssl
import struct
import sys
import threading
from asyncio import IncompleteReadError, StreamReader, StreamReaderProtocol, StreamWriter
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from workshop_lib.dsql import wire
from workshop_lib.dsql.allowed import Refusal, may_set, not_supported
from workshop_lib.dsql.conflicts import RETRYABLE
from workshop_lib.dsql.limits import (
    CONNECTION_BURST,
    CONNECTION_LIFE_S,
    CONNECTIONS_PER_SECOND,
    Rate,
)
from workshop_lib.dsql.statements import COMMIT, Statement, read
from workshop_lib.dsql.tokens import CLUSTER_NAMES, CLUSTER_REGION, objection

HOST = "127.0.0.1"
OWNER = "workshop_owner"
SIGN_IN_S = 20.0
GOODBYE_S = 2.0
BUFFER = 1 << 18
LOCK_WAIT, LOOK_S = "250ms", 0.02
"""How long a row is waited for; how soon it is looked who holds it, seconds."""
MAX_STATEMENT = 4 * 1024 * 1024
"""Bytes of a statement's text. How deep the parser goes down is at most proportional to it."""
SHORT = 4096
"""Statements up to so many bytes are remembered: programs send the same ones again and again."""
STACK_BYTES = 512 * 1024 * 1024
"""Address space, not memory: enough for the parser to go down through any such text."""
CONFLICT = Refusal("40001", "change conflicts with another transaction (OC000)")
CHANGED = Refusal("40001", "schema has been updated by another transaction, please retry: (OC001)")
WAITED = RETRYABLE | {"55P03"}
DENIED = "unable to accept connection, access denied"
TOO_FAST = Refusal("53400", "unable to accept connection, rate exceeded")
NO_TLS = Refusal("08P01", "SSL is mandatory")
TOO_OLD = Refusal("57P01", "connection has lasted 60 minutes, which is the longest allowed")
ASLEEP = Refusal("57P03", "unable to accept connection, waking up cluster")
TLS_RECORD = b"\x16"
LOOKED_AT = frozenset(b"12CIsZEK")
"""Kinds of PostgreSQL's messages that are not passed on unseen."""


@dataclass
class Cluster:
    """What the front stands for.

    Attributes:
        server: where PostgreSQL is, each time that somebody signs in.
        password: of PostgreSQL's role `admin`, of its owner.
        objection: why a token does not open the cluster for a user; empty if it does.
        tls: with the certificate that clients are shown.
        sessions: who is signed in, by the process of PostgreSQL that serves them.

    """

    server: Callable[[], tuple[str, int]]
    password: Callable[[str], str]
    objection: Callable[[str, str], str]
    tls: ssl.SSLContext
    rate: Rate = field(default_factory=lambda: Rate(CONNECTIONS_PER_SECOND, CONNECTION_BURST))
    life_s: float = CONNECTION_LIFE_S
    sessions: dict[int, Session] = field(default_factory=dict)
    _watch: tuple[StreamReader, StreamWriter] | None = None
    _watching: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def serve(self, listener: socket.socket) -> None:
        """Serve clients for ever, each in a task of its own."""
        loop, tasks = asyncio.get_running_loop(), set()
        listener.setblocking(False)
        try:
            while True:
                try:
                    client, _ = await loop.sock_accept(listener)
                except OSError:  # too many files: some will be closed
                    await asyncio.sleep(0.05)
                    continue
                task = asyncio.create_task(self._serve_one(client))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            if self._watch:
                self._watch[1].close()

    async def _serve_one(self, client: socket.socket) -> None:
        """Serve one client. Whatever it sends, or stops sending, ends at most itself."""
        with contextlib.suppress(OSError, IncompleteReadError, TimeoutError):
            async with asyncio.timeout(SIGN_IN_S):
                found = await self._secure(client)
            if found is None:
                return
            reader, writer = found
            try:
                async with asyncio.timeout(SIGN_IN_S):
                    server = await self._sign_in(reader, writer)
                if server:
                    await self._relay(Session(self, reader, writer, *server))
            except wire.ProtocolError as error:
                writer.write(wire.error(error.refusal))
            finally:
                writer.close()
                async with asyncio.timeout(GOODBYE_S):
                    await writer.wait_closed()

    async def _relay(self, session: Session) -> None:
        try:
            async with asyncio.timeout(self.life_s):
                await session.run()
        except TimeoutError:
            raise wire.ProtocolError(TOO_OLD) from None
        finally:
            self.sessions.pop(session.pid, None)
            session.to_server.close()

    async def _secure(self, client: socket.socket) -> tuple[StreamReader, StreamWriter] | None:
        """Begin TLS, if the client wants that."""
        loop, reader = asyncio.get_running_loop(), StreamReader(limit=BUFFER)
        with contextlib.ExitStack() as to_close:
            to_close.enter_context(client)
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not await self._asks_for_tls(client):
                return None
            transport, protocol = await loop.connect_accepted_socket(
                lambda: StreamReaderProtocol(reader), client, ssl=self.tls
            )
            to_close.pop_all()  # the transport will close it
        return reader, StreamWriter(transport, protocol, reader, loop)

    async def _asks_for_tls(self, client: socket.socket) -> bool:
        """Whether TLS comes next: asked for, or begun at once (sslnegotiation=direct)."""
        loop = asyncio.get_running_loop()
        while True:
            if await _peek(client) == TLS_RECORD:
                return True
            head = b""
            while len(head) < 8:
                more = await loop.sock_recv(client, 8 - len(head))
                if not more:
                    return False
                head += more
            match struct.unpack("!ii", head):
                case (8, wire.SSL):
                    await loop.sock_sendall(client, b"S")
                    return True
                case (8, wire.GSS):
                    await loop.sock_sendall(client, b"N")
                case (16, wire.CANCEL):
                    await self._cancel(head + await loop.sock_recv(client, 8))
                    return False
                case _:
                    await loop.sock_sendall(client, wire.error(NO_TLS))
                    return False

    async def _sign_in(
        self, reader: StreamReader, writer: StreamWriter
    ) -> tuple[StreamReader, StreamWriter] | None:
        """Let a client in. All whom a token does not open the cluster for hear the same.

        Raises:
            ProtocolError: it may not.

        """
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        if not 8 <= length <= wire.MAX_SIGN_IN:
            raise wire.ProtocolError("invalid length of startup packet")
        body = await reader.readexactly(length - 4)
        (version,) = struct.unpack("!i", body[:4])
        if version == wire.CANCEL:
            await self._cancel(struct.pack("!i", length) + body)
            return None
        if version >> 16 != 3:
            raise wire.ProtocolError("unsupported frontend protocol")
        if version != wire.VERSION_3:
            writer.write(wire.message(b"v", struct.pack("!ii", wire.VERSION_3, 0)))
        words = body[4:].decode(errors="replace").split("\0")
        asked = {k: v for k, v in zip(words[::2], words[1::2], strict=False) if k}
        writer.write(wire.message(b"R", struct.pack("!i", wire.CLEARTEXT)))
        kind, given = await wire.receive(reader, wire.MAX_SIGN_IN)
        if not self.rate.reserve(0)[0]:
            raise wire.ProtocolError(TOO_FAST)
        user, database = asked.pop("user", ""), asked.pop("database", "postgres")
        token = given.rstrip(b"\0").decode(errors="replace")
        if kind != b"p" or database != "postgres":
            raise wire.ProtocolError(DENIED)
        if found := self.objection(user, token):
            raise wire.ProtocolError(f"unable to accept connection, {found}")
        settings = dict(_settings(asked))
        try:
            server = await self._connect(user, settings)
        except (OSError, KeyError, ValueError):
            raise wire.ProtocolError(ASLEEP) from None
        writer.write(wire.message(b"R", struct.pack("!i", wire.OK)))
        return server

    async def _connect(
        self, user: str, settings: dict[str, str]
    ) -> tuple[StreamReader, StreamWriter]:
        """Sign in to PostgreSQL as this role; one that has no password there yet is given one."""
        known = {
            **settings,
            "user": user,
            "database": "postgres",
            "workshop.dsql_rules": "on",
            "lock_timeout": LOCK_WAIT,
            "client_connection_check_interval": "1s",
        }
        if user == "admin":
            return await wire.connect(self.server(), self.password("admin"), known)
        secret = hmac.new(self.password("owner").encode(), user.encode(), "sha256").hexdigest()
        try:
            return await wire.connect(self.server(), secret, known)
        except wire.ProtocolError as error:
            if error.refusal.code != "28P01":
                raise
        owner = await self._as_owner()
        with contextlib.closing(owner[1]):
            literal, name = user.replace("'", "''"), user.replace('"', '""')
            if not await wire.ask(owner, LOGIN_ROLE.format(literal)):
                raise wire.ProtocolError(DENIED)
            await wire.ask(owner, f"ALTER ROLE \"{name}\" PASSWORD '{secret}'")
        return await wire.connect(self.server(), secret, known)

    async def _as_owner(self) -> tuple[StreamReader, StreamWriter]:
        parameters = {"user": OWNER, "database": "postgres"}
        return await wire.ready(
            await wire.connect(self.server(), self.password("owner"), parameters)
        )

    async def settle(self, waiting: Session) -> None:
        """Have a session that waits for others go on, where on DSQL it would.

        A statement that is a transaction of its own is the first to commit, and wins over the open
        transactions that hold its rows. A definition waits for nobody that uses the table. Those
        others fail at their next statement, or COMMIT. Whoever waits for a row within a transaction
        fails itself, by PostgreSQL's lock_timeout.
        """
        async with self._watching:
            try:
                self._watch = self._watch or await self._as_owner()
                found = await wire.ask(self._watch, WAITED_FOR.format(waiting.pid))
            except (OSError, IncompleteReadError, wire.ProtocolError):
                self._watch = None  # PostgreSQL was started again, or is not there
                return
        for pid, what in found:
            other = self.sessions.get(int(pid))
            if other and (what == "relation" or waiting.alone):
                other.doom(CHANGED if what == "relation" else CONFLICT)

    async def _cancel(self, request: bytes) -> None:
        """PostgreSQL knows its clients' secrets; they are the ones that ours got from it."""
        _, writer = await asyncio.open_connection(*self.server())
        writer.write(request)
        await writer.drain()
        writer.close()


LOGIN_ROLE = "SELECT FROM pg_catalog.pg_roles WHERE rolname = '{}' AND rolcanlogin AND NOT rolsuper"
WAITED_FOR = """
SELECT b.pid, l.locktype FROM pg_catalog.pg_locks l,
       pg_catalog.unnest(pg_catalog.pg_blocking_pids(l.pid)) b (pid)
 WHERE l.pid = {} AND NOT l.granted
"""


class Session:
    """One client that is signed in, and its connection to PostgreSQL.

    Answers come in the order of what they answer to. `_due` holds, in this order, what is awaited:
    the end of a statement (C) with the tag to show, of a Parse (1) or Bind (2) whether it was ours,
    and where an error's skipping ends (Z).

    Attributes:
        pid: the process of PostgreSQL that serves it.
        alone: its present statement is a transaction of its own.

    """

    def __init__(
        self,
        cluster: Cluster,
        client: StreamReader,
        to_client: StreamWriter,
        server: StreamReader,
        to_server: StreamWriter,
    ) -> None:
        self._client, self._to_client = client, to_client
        self._server, self.to_server = server, to_server
        self._cluster, self.pid, self.alone = cluster, 0, False
        self._state = b"I"
        self._doomed: Refusal | None = None
        self._look: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._due: deque[tuple[bytes, str]] = deque()
        self._tags: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}

    async def run(self) -> None:
        """Pass on what both say until one of them is gone.

        Raises:
            ProtocolError: the client does not speak the protocol.

        """
        ways = [asyncio.create_task(self._listen()), asyncio.create_task(self._answer())]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in done:
                with contextlib.suppress(OSError, IncompleteReadError):
                    way.result()
        finally:
            if self._look:
                self._look.cancel()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _listen(self) -> None:
        """Pass on what the client says, as far as DSQL allows it."""
        while True:
            kind, body = await wire.receive(self._client)
            self.to_server.write(self._heard(kind, body))
            if kind in {b"Q", b"S"}:
                running = sum(due == b"C" for due, _ in self._due)
                self.alone = self._state == b"I" and running == 1
                self._look_in(LOOK_S)
            if kind == b"X":
                return
            await self.to_server.drain()

    def _look_in(self, seconds: float) -> None:
        """Look whether the statement waits for somebody, unless it has ended before."""
        if self._look:
            self._look.cancel()
        loop = asyncio.get_running_loop()

        def look() -> None:
            self._looking = loop.create_task(self._cluster.settle(self))
            self._look_in(2 * seconds)

        self._look = loop.call_later(seconds, look)

    def doom(self, refusal: Refusal) -> None:
        """Have its open transaction fail, which releases what it holds; it is told so later."""
        if self._state == b"T" and not self._due:
            self._doomed, self._state = refusal, b"E"
            self._due.append((b"Z", "ours"))
            self.to_server.write(_query(_refusing(refusal)))

    def _heard(self, kind: bytes, body: bytes) -> bytes:
        """What PostgreSQL is told in the place of a message."""
        match kind:
            case b"Q":
                return self._queried(body)
            case b"P":
                return self._prepared(body)
            case b"B":
                portal, statement, _ = _texts(body, 2)
                self._portals[portal] = self._tags.get(statement, "")
                self._due.append((b"2", ""))
            case b"E":
                (portal, _) = _texts(body, 1)
                self._due.append((b"C", self._portals.get(portal, "")))
            case b"S":
                self._due.append((b"Z", ""))
            case b"F":
                self._due.append((b"Z", ""))
                return _query(_refusing(not_supported("unsupported statement: FunctionCall")))
            case b"D" | b"C" | b"H" | b"X" | b"d" | b"c" | b"f":
                pass
            case _:
                raise wire.ProtocolError("invalid frontend message type")
        return wire.message(kind, body)

    def _queried(self, body: bytes) -> bytes:
        (text, rest) = _texts(body, 1)
        if rest:
            raise wire.ProtocolError("invalid message format")
        statements = _read(text)
        self._due.extend((b"C", one.tag) for one in statements)
        self._due.append((b"Z", ""))
        if not any(one.refusal or one.tag for one in statements):
            return wire.message(b"Q", body)
        return _query(
            "\n;".join(_refusing(one.refusal) if one.refusal else one.text for one in statements)
        )

    def _prepared(self, body: bytes) -> bytes:
        name, text, rest = _texts(body, 2)
        statements = _read(text)
        self._tags.pop(name, None)
        if len(statements) == 1:  # of several in one Parse, PostgreSQL says that it takes none
            (one,) = statements
            if one.refusal:
                return self._refused(one.refusal)
            self._tags[name] = one.tag
            text = one.text.encode() if one.tag else text
        self._due.append((b"1", ""))
        return wire.message(b"P", b"\0".join((name, text, rest)))

    def _refused(self, refusal: Refusal) -> bytes:
        """Have PostgreSQL fail with this: it then skips what follows, and aborts a transaction."""
        self._due.extend([(b"1", "ours"), (b"2", "ours"), (b"C", "")])
        return (
            wire.message(b"P", f"\0{_refusing(refusal)}\0\0\0".encode())
            + wire.message(b"B", b"\0\0" + bytes(6))
            + wire.message(b"E", b"\0" + bytes(4))
        )

    async def _answer(self) -> None:
        """Pass on what PostgreSQL says, as DSQL would say it."""
        waiting = bytearray()
        while piece := await self._server.read(BUFFER):
            waiting += piece
            told, passed, start, size = bytearray(), 0, 0, len(waiting)
            while size >= start + 5:
                end = start + 1 + int.from_bytes(waiting[start + 1 : start + 5])
                if size < end:
                    break
                if waiting[start] in LOOKED_AT:
                    told += waiting[passed:start]
                    told += self._said(bytes(waiting[start:end]))
                    passed = end
                start = end
            told += waiting[passed:start]
            del waiting[:start]
            self._to_client.write(told)
            await self._to_client.drain()

    def _said(self, whole: bytes) -> bytes:
        """What the client is told in the place of a whole message."""
        kind, due = whole[:1], self._due[0] if self._due else (b"", "")
        match kind:
            case b"K":
                (self.pid,) = struct.unpack_from("!i", whole, 5)
                self._cluster.sessions[self.pid] = self
            case b"1" | b"2":
                if self._due and self._due.popleft()[1]:
                    return b""
            case b"C" | b"I" | b"s":
                tag = self._due.popleft()[1] if due[0] == b"C" else ""
                return self._completed(whole, tag) if kind == b"C" and tag else whole
            case b"E":
                return b"" if due == (b"Z", "ours") else self._failed(whole)
            case b"Z":
                return self._ready(whole, ours=due == (b"Z", "ours"))
        return whole

    def _completed(self, whole: bytes, tag: str) -> bytes:
        if tag != COMMIT:
            return wire.message(b"C", tag.encode() + b"\0")
        rolled_back = whole[5:] == b"ROLLBACK\0"
        return self._tell_doom(self._doomed) if rolled_back and self._doomed else whole

    def _failed(self, whole: bytes) -> bytes:
        aborted = wire.error_fields(whole[5:]).get("C") == "25P02"
        return self._tell_doom(self._doomed) if aborted and self._doomed else _error(whole)

    def _ready(self, whole: bytes, *, ours: bool) -> bytes:
        while self._due and self._due.popleft()[0] != b"Z":
            pass
        if ours:
            return b""
        self._state = whole[5:]
        if self._state == b"I":
            self._doomed = None
        if self._look and not self._due:
            self._look.cancel()
        return whole

    def _tell_doom(self, refusal: Refusal) -> bytes:
        self._doomed = None
        return wire.error(refusal, "ERROR")


def _error(whole: bytes) -> bytes:
    """An error as DSQL words it: a wait that was too long, or would be for ever, is a conflict."""
    fields = wire.error_fields(whole[5:])
    severity = fields.get("S", "ERROR")
    if fields.get("C") in WAITED:
        return wire.error(CONFLICT, severity)
    if not any(ours in fields.get("W", "") for ours in (" dsql_rules.", " sys.")):
        return whole
    refusal = Refusal(fields.get("C", "XX000"), fields.get("M", ""))
    return wire.error(refusal, severity, **{k: fields[k] for k in "DH" if k in fields})


@lru_cache(maxsize=256)
def _read_short(text: bytes) -> list[Statement]:
    return read(text.decode())


def _read(text: bytes) -> list[Statement]:
    if len(text) > MAX_STATEMENT:
        return [Statement("", Refusal("54000", f"statement longer than {MAX_STATEMENT} bytes"))]
    try:
        return _read_short(text) if len(text) < SHORT else read(text.decode())
    except UnicodeDecodeError:
        return [Statement("", Refusal("22021", 'invalid byte sequence for encoding "UTF8"'))]


def _query(sql: str) -> bytes:
    return wire.message(b"Q", sql.encode() + b"\0")


def _refusing(refusal: Refusal) -> str:
    code, message = (text.replace("'", "''") for text in refusal)
    return f"SELECT dsql_rules.refuse('{code}', '{message}')"


def _texts(body: bytes, count: int) -> list[bytes]:
    """The texts at the beginning of a message, and the rest of it.

    Raises:
        ProtocolError: there are not so many.

    """
    parts = body.split(b"\0", count)
    if len(parts) <= count:
        raise wire.ProtocolError("invalid message format")
    return parts


def _settings(asked: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The parameters that a client sets when it signs in.

    Raises:
        ProtocolError: one may not be set, or what is in `options` is none.

    """
    words = iter(asked.pop("options", "").replace("\\ ", "\0").split())
    for word in words:
        given = next(words, "") if word == "-c" else word.removeprefix("-c").removeprefix("--")
        name, equals, value = given.replace("\0", " ").partition("=")
        if not equals or not word.startswith("-"):
            raise wire.ProtocolError("invalid command-line argument for server process")
        asked[name.replace("-", "_")] = value
    for name, value in asked.items():
        if name.startswith("_pq_."):
            continue
        if refusal := may_set(name, value):
            raise wire.ProtocolError(refusal)
        yield name, value


async def _peek(client: socket.socket) -> bytes:
    """The first byte, which stays to be read; empty at the end."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(client, ready.set)
    try:
        while True:
            await ready.wait()
            try:
                return client.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                ready.clear()
    finally:
        loop.remove_reader(client)


def local_cluster(folder: Path) -> Cluster:
    """The cluster whose PostgreSQL keeps its state in this folder."""
    # Not through StateFolder: this program takes nothing that it does not need.
    secrets = json.loads((folder / "secrets.json").read_text())
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "dsql" / "key.pem")
    tls.set_alpn_protocols(["postgresql"])
    keys = {secrets["s3_key"]: secrets["s3_secret"]}
    return Cluster(
        server=lambda: (HOST, json.loads((folder / "ports.json").read_text())["postgres"]),
        password=secrets.__getitem__,
        objection=lambda user, token: objection(
            token, user=user, hosts={*CLUSTER_NAMES, HOST}, region=CLUSTER_REGION, keys=keys
        ),
        tls=tls,
    )


def main() -> None:
    """Serve at the port named on the command line."""
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    cluster, listener = local_cluster(folder), socket.create_server((HOST, port), backlog=512)
    sys.setrecursionlimit(20_000)
    threading.stack_size(STACK_BYTES)
    serving = threading.Thread(target=lambda: asyncio.run(cluster.serve(listener)), daemon=True)
    serving.start()
    serving.join()


if __name__ == "__main__":
    main()
