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
import os
import re
import secrets
import socket
import ssl
import struct
import sys
import threading
from asyncio import IncompleteReadError
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from workshop_lib.dsql import wire
from workshop_lib.dsql.allowed import Refusal, may_set
from workshop_lib.dsql.limits import CONNECTION_LIFE_S, Rate
from workshop_lib.dsql.statements import parse_deep_texts
from workshop_lib.dsql.tokens import CLUSTER_NAMES, CLUSTER_REGION, objection
from workshop_lib.dsql.transactions import PATIENCE_S, Session
from workshop_lib.services.local import LOGIN

HOST = "127.0.0.1"
OWNER = "workshop_owner"
SIGN_IN_S = 20.0
CONNECT_S = 5
GOODBYE_S = 2.0
LOCK_WAIT = "250ms"
"""How long a row is waited for that a client of the server itself has locked."""
DENIED = "unable to accept connection, access denied"
TOO_FAST = Refusal("53400", "unable to accept connection, rate exceeded")
NO_TLS = Refusal("08P01", "SSL is mandatory")
TOO_OLD = Refusal("57P01", "connection has lasted 60 minutes, which is the longest allowed")
ASLEEP = "unable to accept connection, waking up cluster"
TLS_RECORD = b"\x16"
REPORTED = (
    *("application_name", "client_encoding", "DateStyle", "default_transaction_read_only"),
    *("in_hot_standby", "integer_datetimes", "IntervalStyle", "is_superuser", "server_encoding"),
    *("server_version", "session_authorization", "standard_conforming_strings", "TimeZone"),
)
"""What PostgreSQL 16 reports at each sign-in (its documentation, "Asynchronous Operations")."""


@dataclass
class Cluster:
    """What the front stands for.

    Attributes:
        server: where PostgreSQL is, each time that a client signs in.
        password: of PostgreSQL's role `admin`, of its owner.
        objection: why a token does not open the cluster for a user; empty if it does.
        tls: with the certificate that clients are shown.
        rewrite: what to read in the place of a string of statements.
        sessions: the clients that are signed in, by the key that cancels their statements.
        holder: whose transaction has its changes in PostgreSQL (transactions.py).

    """

    server: Callable[[], tuple[str, int]]
    password: Callable[[str], str]
    objection: Callable[[str, str], str]
    tls: ssl.SSLContext
    rate: Rate = field(default_factory=Rate)
    life_s: float = CONNECTION_LIFE_S
    max_schemas: int = 10
    rewrite: Callable[[str], str] = str
    sessions: dict[bytes, tuple[Session, Connection]] = field(default_factory=dict)
    holder: Session | None = None
    parsers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    """So many long strings of statements are parsed at once, each by a process of its own."""
    _turns: dict[asyncio.Future[None], bool] = field(default_factory=dict)
    """Of sessions that change something, in order, whether each is of a statement alone."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, listener: socket.socket) -> None:
        """Serve clients for ever, each in a task of its own."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError:  # too many files: some will be closed
                await asyncio.sleep(0.05)
                continue
            self._spawn(self._serve_one(client))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- signing in ---

    async def _serve_one(self, client: socket.socket) -> None:
        """Serve one client. Whatever it sends, or stops sending, ends at most itself."""
        with contextlib.suppress(OSError, IncompleteReadError, TimeoutError, struct.error), client:
            client.setblocking(False)
            # asyncio does so only where an accepted socket says that it is of TCP.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(SIGN_IN_S):
                if not await self._begins_tls(client):
                    return
                side = await wire.open_side(client, self.tls)
            try:
                async with asyncio.timeout(SIGN_IN_S):
                    server = await self._sign_in(side)
                if server:
                    with contextlib.closing(server):
                        await self._run(side, server)
            except wire.ProtocolError as error:
                side.writer.write(wire.error(error.refusal))
            finally:
                side.writer.close()
                async with asyncio.timeout(GOODBYE_S):
                    await side.writer.wait_closed()

    async def _begins_tls(self, client: socket.socket) -> bool:
        """Whether TLS comes next: asked for, or begun at once (sslnegotiation=direct)."""
        loop = asyncio.get_running_loop()
        while await _peek(client) != TLS_RECORD:
            code, key = await wire.receive_first(partial(loop.sock_recv, client))
            if code == wire.CANCEL:
                await self._cancel(key)
                return False
            answers = {wire.SSL: b"S", wire.GSS: b"N"}
            await loop.sock_sendall(client, answers.get(code, wire.error(NO_TLS)))
            if code != wire.GSS:
                return code == wire.SSL
        return True

    async def _sign_in(self, side: wire.Side) -> Connection | None:
        """Let a client in. Every token that does not open the cluster gets the same answer.

        Returns:
            Its connection to PostgreSQL; None if it only cancels a statement.

        Raises:
            ProtocolError: it may not.

        """
        version, body = await wire.receive_first(side.reader.readexactly)
        if version == wire.CANCEL:
            await self._cancel(body)
            return None
        if version >> 16 != 3:
            raise wire.ProtocolError("unsupported frontend protocol")
        if version != wire.VERSION_3:
            side.writer.write(wire.message(b"v", struct.pack("!ii", wire.VERSION_3, 0)))
        words = body.decode(errors="replace").split("\0")
        asked = {k.lower(): v for k, v in zip(words[::2], words[1::2], strict=False) if k}
        side.writer.write(wire.message(b"R", struct.pack("!i", wire.CLEARTEXT)))
        kind, given = await wire.receive(side.reader, wire.MAX_SIGN_IN)
        if not self.rate.reserve(0)[0]:
            raise wire.ProtocolError(TOO_FAST)
        user, database = asked.pop("user", ""), asked.pop("database", "postgres")
        if kind != b"p" or database != "postgres":
            raise wire.ProtocolError(DENIED)
        if found := self.objection(user, given.rstrip(b"\0").decode(errors="replace")):
            raise wire.ProtocolError(f"unable to accept connection, {found}")
        try:
            return await asyncio.to_thread(self._connect_as, user, dict(_settings(asked)))
        except (OSError, KeyError, ValueError):
            raise wire.ProtocolError(Refusal("57P03", ASLEEP)) from None

    def _connect_as(self, user: str, settings: dict[str, str]) -> Connection:
        """Sign in to PostgreSQL as this role; one that has no password there yet is given one."""
        known = {
            **settings,
            "workshop.dsql_rules": "on",
            "workshop.most_schemas": str(self.max_schemas),
            "lock_timeout": LOCK_WAIT,
            "client_connection_check_interval": "1s",
        }
        encoding = known.pop("client_encoding", "UTF8").strip("'")
        # With a backslash before what would end an option.
        given = (re.sub(r"([\s\\])", r"\\\1", f"{k}={v}") for k, v in known.items())
        options = " ".join(f"-c {one}" for one in given)
        secret = hmac.new(self.password("owner").encode(), user.encode(), "sha256").hexdigest()
        if user == "admin":
            secret = self.password("admin")
        connect = partial(
            self._connect, user=user, password=secret, options=options, client_encoding=encoding
        )
        try:
            found = connect()
        except psycopg2.OperationalError as error:
            if "password authentication failed" not in str(error):
                said = str(error).partition("FATAL:")[2].strip()
                raise wire.ProtocolError(Refusal("57P03", said or ASLEEP)) from None
            self._give_password(user, secret)
            found = connect()
        found.autocommit = True
        return found

    def _connect(self, **given: Any) -> Connection:
        host, port = self.server()
        place = {"host": host, "port": port, "dbname": "postgres", "connect_timeout": CONNECT_S}
        found: Connection = psycopg2.connect(**{**place, **LOGIN, **given})
        return found

    def _give_password(self, user: str, secret: str) -> None:
        with (
            contextlib.closing(self._connect(user=OWNER, password=self.password("owner"))) as owner,
            owner,
            owner.cursor() as cursor,
        ):
            cursor.execute(LOGIN_ROLE, (user,))
            if not cursor.rowcount:
                raise wire.ProtocolError(DENIED)
            change = sql.SQL("ALTER ROLE {} PASSWORD {}")
            cursor.execute(change.format(sql.Identifier(user), sql.Literal(secret)))

    async def _run(self, client: wire.Side, connected: Connection) -> None:
        """Serve a client that is signed in, over the socket that libpq has signed in on."""
        server = await wire.open_side(socket.socket(fileno=os.dup(connected.fileno())))
        self._spawn(_hang_up(client, server))
        session = Session(self, client, server)
        key = struct.pack("!i", connected.get_backend_pid()) + secrets.token_bytes(4)
        self.sessions[key] = session, connected
        known = ((name, connected.get_parameter_status(name)) for name in REPORTED)
        said = [wire.message(b"S", f"{k}\0{v}\0".encode()) for k, v in known if v is not None]
        begin = wire.message(b"R", struct.pack("!i", wire.OK)) + wire.message(b"K", key)
        client.writer.write(b"".join([begin, *said, wire.message(b"Z", b"I")]))
        try:
            async with asyncio.timeout(self.life_s):
                await session.run()
        except TimeoutError:
            raise wire.ProtocolError(TOO_OLD) from None
        finally:
            del self.sessions[key]
            server.writer.close()

    async def _cancel(self, key: bytes) -> None:
        if key in self.sessions:
            await asyncio.to_thread(self.sessions[key][1].cancel)

    # --- transactions ---

    @contextlib.asynccontextmanager
    async def turn(self, session: Session, *, alone: bool) -> AsyncIterator[bool]:
        """Have no other transaction's changes in PostgreSQL, unless that takes too long.

        Args:
            session: whose turn it is to be.
            alone: its statement is a transaction of its own. Such go on beside each other.

        """
        mine = asyncio.get_running_loop().create_future()
        others = [turn for turn, is_alone in self._turns.items() if not (alone and is_alone)]
        self._turns[mine] = alone
        try:
            waiting = others and (await asyncio.wait(others, timeout=PATIENCE_S))[1]
            if not waiting and self.holder not in {None, session}:
                await asyncio.shield(self._spawn(self.holder.take_back()))
            yield not waiting
        finally:
            del self._turns[mine]
            mine.set_result(None)

    def let_go(self, session: Session) -> None:
        """Note that a session has no changes in PostgreSQL any more."""
        if self.holder is session:
            self.holder = None

    def schema_changes(self, by: Session) -> None:
        """Have all other open transactions fail. A definition waits for nobody."""
        for other, connected in self.sessions.values():
            if other is not by:
                cancel = partial(asyncio.to_thread, connected.cancel)
                self._spawn(other.doom(other.transaction, cancel))


LOGIN_ROLE = "SELECT FROM pg_catalog.pg_roles WHERE rolname = %s AND rolcanlogin AND NOT rolsuper"


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


async def _hang_up(client: wire.Side, server: wire.Side) -> None:
    """End what PostgreSQL does for a client that is gone."""
    with contextlib.suppress(OSError):
        await client.writer.wait_closed()
    server.writer.close()


async def _peek(client: socket.socket) -> bytes:
    """The first byte, which stays to be read; empty at the end."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(client, ready.set)
    try:
        await ready.wait()
        return client.recv(1, socket.MSG_PEEK)
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
    parse_deep_texts()
    serving = threading.Thread(target=lambda: asyncio.run(cluster.serve(listener)), daemon=True)
    serving.start()
    serving.join()


if __name__ == "__main__":
    main()
