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
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workshop_lib.dsql import wire
from workshop_lib.dsql.allowed import Refusal, may_set
from workshop_lib.dsql.limits import (
    CONNECTION_BURST,
    CONNECTION_LIFE_S,
    CONNECTIONS_PER_SECOND,
    Rate,
)
from workshop_lib.dsql.tokens import CLUSTER_NAMES, CLUSTER_REGION, objection
from workshop_lib.dsql.transactions import PATIENCE_S, Session

HOST = "127.0.0.1"
OWNER = "workshop_owner"
SIGN_IN_S = 20.0
GOODBYE_S = 2.0
BUFFER = 1 << 18
LOCK_WAIT = "250ms"
"""How long a row is waited for that somebody has who is not signed in here."""
STACK_BYTES = 512 * 1024 * 1024
"""Address space, not memory: enough for the parser to go down through any such text."""
DENIED = "unable to accept connection, access denied"
TOO_FAST = Refusal("53400", "unable to accept connection, rate exceeded")
NO_TLS = Refusal("08P01", "SSL is mandatory")
TOO_OLD = Refusal("57P01", "connection has lasted 60 minutes, which is the longest allowed")
ASLEEP = Refusal("57P03", "unable to accept connection, waking up cluster")
TLS_RECORD = b"\x16"


@dataclass
class Cluster:
    """What the front stands for.

    Attributes:
        server: where PostgreSQL is, each time that somebody signs in.
        password: of PostgreSQL's role `admin`, of its owner.
        objection: why a token does not open the cluster for a user; empty if it does.
        tls: with the certificate that clients are shown.
        sessions: who is signed in.
        holder: whose transaction has its changes in PostgreSQL (transactions.py).

    """

    server: Callable[[], tuple[str, int]]
    password: Callable[[str], str]
    objection: Callable[[str, str], str]
    tls: ssl.SSLContext
    rate: Rate = field(default_factory=lambda: Rate(CONNECTIONS_PER_SECOND, CONNECTION_BURST))
    life_s: float = CONNECTION_LIFE_S
    max_schemas: int = 10
    sessions: set[Session] = field(default_factory=set)
    holder: Session | None = None
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _alone: set[Session] = field(default_factory=set)
    _none_alone: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, listener: socket.socket) -> None:
        """Serve clients for ever, each in a task of its own."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        self._none_alone.set()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError:  # too many files: some will be closed
                await asyncio.sleep(0.05)
                continue
            self._spawn(self._serve_one(client))

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
        self.sessions.add(session)
        try:
            async with asyncio.timeout(self.life_s):
                await session.run()
        except TimeoutError:
            raise wire.ProtocolError(TOO_OLD) from None
        finally:
            self.sessions.discard(session)
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
            "workshop.most_schemas": str(self.max_schemas),
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

    @contextlib.asynccontextmanager
    async def take_turn(self, session: Session, *, alone: bool) -> AsyncIterator[bool]:
        """Have no other transaction's changes in PostgreSQL, unless that takes too long.

        Args:
            session: whose turn it is to be.
            alone: its statement is a transaction of its own. Such go on beside each other.

        """
        async with contextlib.AsyncExitStack() as turn:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await turn.enter_async_context(self._turn)
                    if not alone:
                        await self._none_alone.wait()
            except TimeoutError:
                await turn.aclose()
                yield False
                return
            if self.holder not in {None, session}:
                await asyncio.shield(self._spawn(self.holder.take_back()))
            if alone:
                self._alone.add(session)
                self._none_alone.clear()
                await turn.aclose()
                turn.callback(self._ends_alone, session)
            yield True

    def _ends_alone(self, session: Session) -> None:
        self._alone.discard(session)
        if not self._alone:
            self._none_alone.set()

    def schema_changes(self, by: Session) -> None:
        """Have all other open transactions fail. A definition waits for nobody."""
        for other in self.sessions - {by}:
            if other.transaction:
                self._spawn(other.doom(other.transaction))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _cancel(self, request: bytes) -> None:
        """PostgreSQL knows its clients' secrets; they are the ones that ours got from it."""
        _, writer = await asyncio.open_connection(*self.server())
        writer.write(request)
        await writer.drain()
        writer.close()


LOGIN_ROLE = "SELECT FROM pg_catalog.pg_roles WHERE rolname = '{}' AND rolcanlogin AND NOT rolsuper"


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
