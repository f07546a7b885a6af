"""One client's session of the local Aurora DSQL, with optimistic commit.

On Aurora DSQL nobody waits: each transaction works on its snapshot, the first to commit wins, and
who has lost is told at its own COMMIT. PostgreSQL has the second writer of a row wait for the
first. So of all transactions only one at a time has its changes in PostgreSQL, its *holder*.
Whoever is to change something takes them back there first (ROLLBACK TO a savepoint, which keeps the
snapshot and lets go of all locks). The holder's changes are kept here, as rows before and after
each statement, and are made again, value by value, when it goes on. If that fails, another
transaction has committed first: this one has lost. It goes on in copies of the tables as its
snapshot has them, so that it sees what it did, and fails at COMMIT.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from workshop_lib.dsql import wire
from workshop_lib.dsql.allowed import Refusal, not_supported
from workshop_lib.dsql.conflicts import RETRYABLE
from workshop_lib.dsql.statements import COMMIT, Statement, read, redirect

if TYPE_CHECKING:
    from workshop_lib.dsql.front import Cluster

BUFFER = 1 << 18
PATIENCE_S = 1.0
"""How long others' statements are waited for, seconds; then PostgreSQL's own locks decide."""
FLUSH_S = 0.005
"""How long a Sync is awaited that may follow a Flush, seconds: some clients send both."""
MAX_HELD = 32 * 1024 * 1024
"""Bytes of an answer that is held back until it is certain."""
MAX_GROUP = 1024 * 1024
"""Bytes of messages that are looked at together, before they are passed on."""
MAX_STATEMENT = 4 * 1024 * 1024
"""Bytes of a statement's text. How deep the parser goes down is at most proportional to it."""
SHORT = 4096
"""Statements up to so many bytes are remembered: programs send the same ones again and again."""
CONFLICT = Refusal("40001", "change conflicts with another transaction (OC000)")
CHANGED = Refusal("40001", "schema has been updated by another transaction, please retry: (OC001)")
WAITED = RETRYABLE | {"55P03"}
MAYBE_LOST = WAITED | {"23505"}
"""Errors that may be due to another transaction's commit, which the snapshot does not show."""
OPEN = "SET LOCAL dsql_rules.log = 1; DO 'BEGIN END'; SAVEPOINT dsql_rules"
"""After BEGIN: it takes the snapshot, and begins what can be taken back."""
TAKE_BACK = "ROLLBACK TO SAVEPOINT dsql_rules;"
SHADOW = "SELECT * FROM dsql_rules.shadow(to_regclass({}))"
TOUCH = "SELECT dsql_rules.touch(to_regclass({}))"
CHANGE = "DSQLW"
"""SQLSTATE of the notices by which the triggers of rules.sql tell what a statement changed."""
LOOKED_AT = frozenset(b"123CIsZENG")
"""Kinds of PostgreSQL's messages that are not passed on unseen."""
COPY_DATA = {b"d", b"c", b"f"}


class Prepared(NamedTuple):
    """A statement that a client has prepared, and the rest of its Parse."""

    statement: Statement
    rest: bytes


class Message(NamedTuple):
    """What a client said.

    Attributes:
        kind: of the message, a letter.
        body: what is in it.
        statements: what it prepares (P), binds (B), or has run (Q, E).
        rest: of what it binds, the types of the parameters as its Parse has them.

    """

    kind: bytes
    body: bytes
    statements: list[Statement]
    rest: bytes = b""


class Change(NamedTuple):
    """What a statement did to a table: its rows before and after, in JSON; of some, there is none.

    A row that was updated has the same place in both.
    """

    table: str
    before: str
    after: str


class Inner:
    """A question of our own to PostgreSQL: its rows as bytes, and what went wrong."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self.error = ""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Session:
    """One client that is signed in, and its connection to PostgreSQL.

    Answers come in the order of what they answer to. `_due` holds, in this order, what is awaited:
    the end of a statement (C) with the tag to show, of a Parse (1), Bind (2) or Close (3) whether
    it was ours, and where an error's skipping ends (Z).
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
        self._cluster = cluster
        self._state, self._begun = b"I", 0
        self._due: deque[tuple[bytes, str]] = deque()
        self._prepared: dict[bytes, Prepared] = {}
        self._portals: dict[bytes, Statement] = {}
        self._idle, self._passed_on = asyncio.Event(), asyncio.Event()
        self._passed_on.set()
        self._mutex = asyncio.Lock()
        self._inner: Inner | None = None
        self._held: bytearray | None = None
        self._unsynced = self._suspended = self._executing = self._copying = self._gone = False
        self._asked = False
        self._error = ""
        self._end_transaction()

    def _end_transaction(self) -> None:
        """Forget what belongs to a transaction.

        `_changes`: what it did, to be made again, as SQL. `_settings`: what it SET. `_taken_back`:
        its changes are not in PostgreSQL. `_doomed`: why it will fail. `_shadows`: the tables that
        it has copies of, once it has lost.
        """
        self._begun += 1
        self._opened = self._taken_back = False
        self._changes: list[Change] = []
        self._settings: list[str] = []
        self._doomed: Refusal | None = None
        self._shadows: set[tuple[str, str]] | None = None
        self._let_go()

    def _let_go(self) -> None:
        if self._cluster.holder is self:
            self._cluster.holder = None

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
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._gone = True
            self._release()
            self._end_transaction()
            if self._inner and not self._inner.done.done():
                self._inner.done.set_exception(ConnectionError())

    # --- from the client ---

    async def _listen(self) -> None:
        """Take what the client says, in groups that end where it awaits an answer."""
        work = incoming = None
        group: list[Message] = []
        size, runs = 0, False
        try:
            while True:
                incoming = asyncio.create_task(wire.receive(self._client))
                if group and group[-1].kind == b"H":
                    await asyncio.wait({incoming}, timeout=FLUSH_S)
                    if not incoming.done():
                        work, group, size, runs = self._begin(group, whole=False), [], 0, False
                kind, body = await incoming
                if kind in COPY_DATA or (kind == b"S" and self._copying):
                    await self._passed_on.wait()  # some clients send the data with the statement
                    self.to_server.write(wire.message(kind, body))
                    await self.to_server.drain()
                    continue
                if work:
                    await work
                if kind == b"X":
                    return
                group.append(self._understand(kind, body))
                size, runs = size + len(body), runs or kind in b"BE"
                whole = kind in b"QSF"
                if whole or (kind == b"H" and not runs) or size > MAX_GROUP:
                    work, group, size, runs = self._begin(group, whole=whole), [], 0, False
        finally:
            for task in (work, incoming):
                if task:
                    task.cancel()

    def _begin(self, group: list[Message], *, whole: bool) -> asyncio.Task[None]:
        self._passed_on.clear()
        work = asyncio.create_task(self._run(group, whole=whole))
        work.add_done_callback(self._end_if_broken)
        return work

    def _end_if_broken(self, work: asyncio.Task[None]) -> None:
        if not work.cancelled() and work.exception():
            self.to_server.close()

    def _understand(self, kind: bytes, body: bytes) -> Message:
        match kind:
            case b"Q":
                (text, rest) = _texts(body, 1)
                if rest:
                    raise wire.ProtocolError("invalid message format")
                return Message(kind, body, _read(text))
            case b"P":
                name, text, rest = _texts(body, 2)
                statements = _read(text)
                # Of several in one Parse, PostgreSQL says that it takes none.
                one = statements[0] if len(statements) == 1 else Statement(text.decode())
                self._prepared[name] = Prepared(one, rest)
                return Message(kind, body, [one])
            case b"B":
                portal, name, rest = _texts(body, 2)
                if name not in self._prepared:  # PostgreSQL says so
                    return Message(kind, body, [])
                prepared = self._prepared[name]
                self._portals[portal] = prepared.statement
                return Message(kind, body, [prepared.statement], prepared.rest)
            case b"E":
                (portal, _) = _texts(body, 1)
                return Message(kind, body, [self._portals.get(portal, Statement(""))])
            case b"C":
                self._prepared.pop(body[1:-1] if body[:1] == b"S" else b"", None)
                return Message(kind, body, [])
            case b"S" | b"F" | b"D" | b"H":
                return Message(kind, body, [])
        raise wire.ProtocolError("invalid frontend message type")

    async def _run(self, group: list[Message], *, whole: bool) -> None:
        """Have PostgreSQL do what a client asks for together, in the world of its transaction."""
        executed = [one for told in group if told.kind in b"QE" for one in told.statements]
        kinds = {one.kind for one in executed if not one.refusal}
        writes = any(one.writes for one in executed)
        if "DDL" in kinds and self._state != b"E":
            self._cluster.schema_changes(self)
        going_on = bool(self._changes) and bool(executed) and kinds != {"ROLLBACK"}
        async with contextlib.AsyncExitStack() as turn, contextlib.AsyncExitStack() as own:
            mine = False
            if whole and self._state != b"E" and self._shadows is None and (writes or going_on):
                taking = self._cluster.take_turn(
                    self, alone=self._state == b"I" and "BEGIN" not in kinds
                )
                mine = await turn.enter_async_context(taking)
            await own.enter_async_context(self._mutex)
            if self._taken_back and going_on:
                await self._make_again(ends=COMMIT in kinds)
            if self._shadows is not None:
                await self._go_on_in_shadows(executed, kinds)
            elif (
                whole
                and "COPY" not in kinds
                and ("BEGIN" in kinds or (writes and self._state == b"T"))
            ):
                self._held = bytearray()
            if kinds == {COMMIT}:
                self._let_go()
                await turn.aclose()  # it takes no more rows, and others need not wait for the disk
            before = list(self._changes)
            await self._pass_on(group, whole=whole)
            if self._held is not None and self._error in MAYBE_LOST and self._state == b"E":
                self._changes = before
                self._held.clear()
                self._let_go()
                await turn.aclose()  # the error let go of its rows; copies take a while
                await self._lose()
                await self._go_on_in_shadows(executed, kinds)
                await self._pass_on(group, whole=whole, again=True)
            if whole:
                await self._settle(executed, mine=mine and self._shadows is None)
            self._release()

    async def _settle(self, executed: list[Statement], *, mine: bool) -> None:
        """After a group: begin what can be taken back, or note what was done; the end, if it is."""
        if self._state == b"I":
            self._end_transaction()
            return
        if self._state != b"T":
            return
        if not self._opened:
            await self._ask(OPEN)
            self._opened = True
        if self._shadows is None:
            self._settings += [one.text for one in executed if one.kind == "SET"]
            for name in {name for one in executed for name in one.locks}:
                if await self._ask(TOUCH.format(_literal(name))):
                    await self._lose()
                    return
            if mine and self._changes:
                self._cluster.holder = self

    async def _pass_on(self, group: list[Message], *, whole: bool, again: bool = False) -> None:
        self._error = ""
        self.to_server.write(b"".join(self._say(one, again=again) for one in group))
        self._unsynced = not whole
        self._executing = any(one.kind == b"E" for one in group)
        self._idle.clear()
        self._passed_on.set()
        await self.to_server.drain()
        if whole:
            await self._idle.wait()

    def _say(self, told: Message, *, again: bool) -> bytes:
        """What PostgreSQL is told in the place of a message."""
        kind, body, statements, rest = told
        match kind:
            case b"Q":
                return self._say_query(body, statements)
            case b"P":
                return self._say_parse(body, statements[0], again=again)
            case b"B" if statements and (self._shadows or self._asked):
                portal, name, values = _texts(body, 2)
                if name and not self._shadows:
                    self._due.append((b"2", ""))
                    return wire.message(kind, body)
                # A copy has to be used, or the unnamed statement went with a question of ours.
                self._due.extend([(b"1", "ours"), (b"2", "")])
                text = redirect(statements[0].text, self._shadows or ()).encode()
                return wire.message(b"P", b"\0".join((b"", text, rest))) + wire.message(
                    b"B", b"\0".join((portal, b"", values))
                )
            case b"E":
                self._due.append((b"C", statements[0].tag))
            case b"F":
                self._due.append((b"Z", ""))
                return _query(_refusing(not_supported("unsupported statement: FunctionCall")))
            case b"B" | b"C" | b"S":
                self._due.append(({b"B": b"2", b"C": b"3", b"S": b"Z"}[kind], ""))
        return wire.message(kind, body)

    def _say_query(self, body: bytes, statements: list[Statement]) -> bytes:
        parts, begins = [], False
        for one in statements:
            self._due.append((b"C", one.tag))
            text = _refusing(one.refusal) if one.refusal else one.text
            if one.kind == "BEGIN" and self._state == b"I" and not begins:
                text = f"{text}\n;{OPEN}"
                self._due.extend([(b"C", "ours")] * 3)
                self._opened = begins = True
            parts.append(redirect(text, self._shadows) if self._shadows else text)
        self._due.append((b"Z", ""))
        if begins or self._shadows or any(one.refusal or one.tag for one in statements):
            return _query("\n;".join(parts))
        return wire.message(b"Q", body)

    def _say_parse(self, body: bytes, one: Statement, *, again: bool) -> bytes:
        if one.refusal:
            # PostgreSQL fails with this, then skips what follows, and aborts a transaction.
            self._due.extend([(b"1", "ours"), (b"2", "ours"), (b"C", "")])
            return (
                wire.message(b"P", f"\0{_refusing(one.refusal)}\0\0\0".encode())
                + wire.message(b"B", b"\0\0" + bytes(6))
                + wire.message(b"E", b"\0" + bytes(4))
            )
        name, text, rest = _texts(body, 2)
        self._asked = self._asked and bool(name)
        text = one.text.encode() if one.tag else text
        whole = wire.message(b"P", b"\0".join((name, text, rest)))
        if again:
            self._due.append((b"3", "ours"))
            whole = wire.message(b"C", b"S" + name + b"\0") + whole
        self._due.append((b"1", ""))
        return whole

    # --- conflicts ---

    async def take_back(self) -> None:
        """Have PostgreSQL forget what the transaction did, whose turn it is not."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._mutex.acquire()
            try:
                if self._state != b"T" or self._unsynced or self._shadows is not None:
                    return
                if self._suspended:  # what is still to be fetched would be gone as well
                    await self._abort(CONFLICT)
                    return
                self._taken_back = True
                await self._ask(TAKE_BACK + ";".join(self._settings))
            finally:
                self._mutex.release()
        self._let_go()

    async def _make_again(self, *, ends: bool) -> None:
        """Do to the rows what the transaction had done to them, or learn that it has lost."""
        if await self._ask(_replay(self._changes)):
            # Who is at its COMMIT needs no copies, and others wait for this turn.
            await (self._abort(CONFLICT) if ends else self._lose())
        self._taken_back = False

    async def _lose(self) -> None:
        self._doomed, self._shadows = CONFLICT, set()
        self._let_go()
        if await self._ask(TAKE_BACK + ";".join(self._settings)) or not (
            await self._shadow(one.table for one in self._changes)
            and not await self._ask(_replay(self._changes, shadows=True))
        ):
            await self._abort(CONFLICT)

    async def _go_on_in_shadows(self, executed: list[Statement], kinds: set[str]) -> None:
        """Have a transaction that has lost do the next statements in copies, or fail at COMMIT."""
        if self._state != b"T":
            return
        names = {name for one in executed for name in one.changes + one.locks}
        if COMMIT in kinds or not await self._shadow(names):
            await self._abort(CONFLICT)

    async def _shadow(self, names: Iterable[str]) -> bool:
        """Make copies of these tables that are to be used in their place."""
        for name in dict.fromkeys(names):
            inner = await self._question(SHADOW.format(_literal(name)))
            if inner.error or self._shadows is None:
                return False
            self._shadows |= {(place, called) for place, called in inner.rows}
        return True

    async def doom(self, begun: int) -> None:
        """Have a transaction fail since the schema is another one: its locks must be gone."""
        with contextlib.suppress(OSError):
            async with self._mutex:
                if self._begun == begun and self._state == b"T":
                    await self._abort(CHANGED)

    @property
    def transaction(self) -> int:
        """Which of its transactions is open: a number. 0: none is, or it has failed."""
        return self._begun if self._state == b"T" else 0

    async def _abort(self, refusal: Refusal) -> None:
        """Have the transaction fail in PostgreSQL; the client is told why later."""
        self._doomed, self._shadows, self._taken_back = refusal, None, False
        self._changes.clear()
        await self._ask(_refusing(refusal))

    async def _ask(self, sql: str) -> str:
        """Have PostgreSQL do something in between: empty, or the SQLSTATE of its refusal."""
        return (await self._question(sql)).error

    async def _question(self, sql: str) -> Inner:
        if self._gone:
            raise ConnectionError
        if self._unsynced:
            self._due.append((b"Z", "ours"))
            self._idle.clear()
            self.to_server.write(wire.message(b"S"))
            await self._idle.wait()
            self._unsynced = False
        self._asked, self._inner = True, (inner := Inner())
        self.to_server.write(_query(sql))
        await inner.done
        return inner

    # --- from PostgreSQL ---

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
                if waiting[start] in LOOKED_AT or self._inner:
                    told += waiting[passed:start]
                    said = self._said(bytes(waiting[start:end]))
                    if self._held is not None:
                        self._held += told
                        told.clear()
                    told += said
                    passed = end
                start = end
            told += waiting[passed:start]
            del waiting[:start]
            self._tell(told)
            await self._to_client.drain()

    def _tell(self, said: bytes | bytearray) -> None:
        if self._held is None:
            self._to_client.write(said)
            return
        self._held += said
        if len(self._held) > MAX_HELD:
            self._release()

    def _release(self) -> None:
        """Tell the client what was held back."""
        if self._held is not None:
            held, self._held = self._held, None
            self._to_client.write(held)

    def _said(self, whole: bytes) -> bytes:
        """What the client is told in the place of a whole message."""
        kind, due = whole[:1], self._due[0] if self._due else (b"", "")
        if kind == b"N" and f"C{CHANGE}\0".encode() in whole:
            fields = wire.error_fields(whole[5:])
            self._note(Change(fields["M"], fields.get("D", ""), fields.get("H", "")))
            return b""
        if self._inner:
            return self._said_within(kind, whole)
        match kind:
            case b"1" | b"2" | b"3" if due[0] == kind:
                return b"" if self._due.popleft()[1] else whole
            case b"C" | b"I" | b"s":
                self._suspended = kind == b"s"
                tag = self._due.popleft()[1] if due[0] == b"C" else ""
                return self._completed(whole, tag) if kind == b"C" else whole
            case b"E":
                return b"" if due == (b"Z", "ours") else self._failed(whole)
            case b"G":
                self._copying = self._executing  # then PostgreSQL overlooks the Sync
                self._release()
            case b"Z":
                return self._ready(whole, ours=due == (b"Z", "ours"))
        return whole

    def _note(self, change: Change) -> None:
        """Remember what a statement changed; rows that were added one by one, together."""
        last = self._changes[-1] if self._changes else None
        if last and last.table == change.table and not (last.before or change.before):
            self._changes[-1] = last._replace(after=f"{last.after[:-1]},{change.after[1:]}")
            return
        self._changes.append(change)

    def _said_within(self, kind: bytes, whole: bytes) -> bytes:
        """Part of the answer to a question of our own."""
        inner = self._inner
        if inner is None:
            return whole
        match kind:
            case b"D":
                inner.rows.append(list(wire.values(whole[5:])))
            case b"E":
                inner.error = wire.error_fields(whole[5:]).get("C", "XX000")
            case b"Z":
                self._state, self._inner = whole[5:], None
                inner.done.set_result(None)
            case b"S":
                return whole
        return b""

    def _completed(self, whole: bytes, tag: str) -> bytes:
        if tag == "ours":
            return b""
        if tag != COMMIT:
            return wire.message(b"C", tag.encode() + b"\0") if tag else whole
        rolled_back = whole[5:] == b"ROLLBACK\0"
        said = self._tell_doom(self._doomed) if rolled_back and self._doomed else whole
        self._end_transaction()
        return said

    def _failed(self, whole: bytes) -> bytes:
        self._error = wire.error_fields(whole[5:]).get("C", "")
        if self._error == "25P02" and self._doomed:
            return self._tell_doom(self._doomed)
        self._doomed = None
        return _error(whole)

    def _ready(self, whole: bytes, *, ours: bool) -> bytes:
        while self._due and self._due.popleft()[0] != b"Z":
            pass
        self._state, self._copying, self._unsynced = whole[5:], False, False
        self._idle.set()
        return b"" if ours else whole

    def _tell_doom(self, refusal: Refusal) -> bytes:
        self._doomed = None
        return wire.error(refusal, "ERROR")


def _replay(changes: list[Change], *, shadows: bool = False) -> str:
    """SQL that makes changes again, in the tables or in their copies."""
    return ";".join(
        f"SELECT dsql_rules.replay({_literal(one.table)}, {_literal(one.before)}, "
        f"{_literal(one.after)}, {shadows})"
        for one in changes
    )


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


def _literal(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))


def _refusing(refusal: Refusal) -> str:
    code, message = map(_literal, refusal)
    return f"SELECT dsql_rules.refuse({code}, {message})"


def _texts(body: bytes, count: int) -> list[bytes]:
    """The texts at the beginning of a message, and the rest of it.

    Raises:
        ProtocolError: there are not so many.

    """
    parts = body.split(b"\0", count)
    if len(parts) <= count:
        raise wire.ProtocolError("invalid message format")
    return parts
