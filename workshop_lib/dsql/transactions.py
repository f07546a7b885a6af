"""One client's session of the local Aurora DSQL, with optimistic commit.

On Aurora DSQL nobody waits: each transaction works on its snapshot, the first to commit wins, and
the loser is told at its own COMMIT. PostgreSQL has the second writer of a row wait for the first.
So only one transaction at a time has its changes in PostgreSQL, the *holder*. Before another one
changes anything, the holder's changes are taken back there (ROLLBACK TO a savepoint, which keeps
the snapshot and releases all locks). They are kept here, as rows before and after each statement,
and made again, value by value, when the transaction goes on. If that fails, another transaction
has committed first: this one has lost. It goes on in copies of the tables as its snapshot has
them, so that it sees what it did, and fails at COMMIT.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio import IncompleteReadError
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from workshop_lib.dsql import wire
from workshop_lib.dsql.allowed import Refusal
from workshop_lib.dsql.conflicts import RETRYABLE
from workshop_lib.dsql.statements import SYNTAX, Statement, literal, read, read_apart
from workshop_lib.dsql.wire import ProtocolError, Side, error, error_fields, message, texts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from workshop_lib.dsql.front import Cluster

PATIENCE_S = 1.0
"""How long others' statements are waited for, seconds; then PostgreSQL's own locks decide."""
MAX_GROUP = 1024 * 1024
"""Bytes of messages that are looked at together, before they are passed on."""
MAX_STATEMENT = 4 * 1024 * 1024
"""Bytes of a statement's text. How deep the parser goes down is at most proportional to it."""
MAX_PARSED_HERE = 32 * 1024
"""Characters of a statement that other clients wait for; a longer one is parsed by a process."""
SHORT = 4096
"""Statements up to so many bytes are remembered: programs send the same ones again and again."""
CONFLICT = Refusal("40001", "change conflicts with another transaction (OC000)")
CHANGED = Refusal("40001", "schema has been updated by another transaction, please retry: (OC001)")
WAITED = RETRYABLE | {"55P03"}
NO_PORTAL = "34000"
CANCELED = "57014"
MAYBE_LOST = WAITED | {"23505"}
"""Errors that may be due to another transaction's commit, which the snapshot does not show."""
OPEN = ("SET LOCAL dsql_rules.log = 1", "DO 'BEGIN END'", "SAVEPOINT dsql_rules")
"""After BEGIN: it takes the snapshot, and begins what can be taken back."""
TAKE_BACK = "ROLLBACK TO SAVEPOINT dsql_rules"
"""It undoes what the transaction changed, and what it SET."""
NEW_PATH = (
    "SELECT set_config('search_path', current_setting('search_path') || ', dsql_copies', true)"
)
"""Has PostgreSQL look up the names in prepared statements again: copies come before tables."""
COPY = "SELECT dsql_rules.copy_table(found, pg_table_is_visible(found)) FROM to_regclass({}) found"
CHANGED_ROWS = "DSQLW"
"""SQLSTATE of notices from rules.sql that tell what a statement changed."""
ROWS = b"Dd"
"""Kinds of PostgreSQL's messages that are passed on together."""
ANSWERS = {b"B": b"2", b"C": b"3", b"D": b"Tn", b"E": b"CIs", b"P": b"1", b"S": b"Z"}
"""What PostgreSQL answers to messages of the extended protocol, by their kinds."""


class Message(NamedTuple):
    """What a client said.

    Attributes:
        kind: of the message, a letter.
        body: what is in it.
        statements: what it prepares (P), binds (B), or has run (Q, E).

    """

    kind: bytes
    body: bytes
    statements: list[Statement]


class Due(NamedTuple):
    """An answer that PostgreSQL owes: the kinds that it may have, and what the client hears of it.

    Attributes:
        kinds: of the message, letters.
        hidden: the client did not ask for it.
        of: the statement that it completes.

    """

    kinds: bytes
    hidden: bool = False
    of: Statement = Statement("")


class Change(NamedTuple):
    """What a statement did to a table: its rows before and after, in JSON; of some, there is none.

    A row that was updated has the same place in both.
    """

    table: str
    before: str
    after: str


@dataclass
class Transaction:
    """What happens between BEGIN and its end.

    Attributes:
        opened: its changes can be taken back.
        used: it has run a statement besides BEGIN and SET.
        changes: what it did, to be made again; rows that were added one by one, together.
        settings: what it SET.
        taken_back: its changes are not in PostgreSQL.
        lost: another one has committed first; it works on copies.
        doomed: why it will fail, if the client has not been told.

    """

    opened: bool = False
    used: bool = False
    changes: list[Change] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    taken_back: bool = False
    lost: bool = False
    doomed: Refusal | None = None

    def note(self, notice: bytes) -> bool:
        """Remember what rules.sql tells of a change. Returns whether the notice is from there."""
        fields = error_fields(notice[5:])
        if fields.get("C") != CHANGED_ROWS:
            return False
        change = Change(fields["M"], fields.get("D", ""), fields.get("H", ""))
        last = self.changes[-1] if self.changes else None
        if last and last.table == change.table and not (last.before or change.before):
            self.changes[-1] = last._replace(after=f"{last.after[:-1]},{change.after[1:]}")
        else:
            self.changes.append(change)
        return True

    def make_again(self) -> list[str]:
        """SQL that makes its changes again, in the tables or in their copies."""
        return [
            f"SELECT dsql_rules.replay({', '.join(map(literal, change))}, {self.lost})"
            for change in self.changes
        ]


class Session:
    """One client that is signed in, and its connection to PostgreSQL.

    Args:
        cluster: whose session it is.
        client, server: both sides.

    Attributes:
        transaction: the present one, or the next.

    """

    def __init__(self, cluster: Cluster, client: Side, server: Side) -> None:
        self._cluster, self._client, self._server = cluster, client, server
        self.transaction = Transaction()
        self._state = b"I"
        self._known: dict[bytes, list[Statement]] = {}
        """What is prepared and bound, by the names' kind (S or P) and the name."""
        self._mutex = asyncio.Lock()
        self._copying: asyncio.Task[None] | None = None
        self._said = bytearray()
        self._held: bytearray | None = None
        """What the client is not told yet; None: it is told everything at once."""
        self._waiting: asyncio.Timeout | None = None
        self._hurried = False
        self._kept: tuple[bytes, bytes] | None = None
        self._skipping = False

    @property
    def is_open(self) -> bool:
        """Whether it is in a transaction that has not failed."""
        return self._state == b"T"

    async def run(self) -> None:
        """Serve the client until it leaves.

        Raises:
            ProtocolError: it does not speak the protocol.
            IncompleteReadError, OSError: one side is gone.

        """
        try:
            while group := await self._group():
                await self._serve(group)
        finally:
            self._end_transaction()
            if self._copying:
                self._copying.cancel()

    def _end_transaction(self) -> None:
        self.transaction = Transaction()
        self._cluster.let_go(self)

    # --- from the client ---

    async def _receive(self) -> tuple[bytes, bytes]:
        kept, self._kept = self._kept, None
        return kept or await wire.receive(self._client.reader)

    async def _group(self) -> list[Message]:
        """What the client says, up to where it awaits an answer. Empty: it leaves."""
        if self._copying:
            await self._copying
            self._copying = None
        group: list[Message] = []
        size = 0
        while True:
            kind, body = await self._receive()
            if kind == b"X":
                return []
            if kind in b"dcf":  # of a COPY that has failed
                continue
            group.append(await self._understand(kind, body))
            size += len(body)
            if kind in b"QSH":
                return group
            if size > MAX_GROUP:
                return [*group, Message(b"H", b"", [])]

    async def _understand(self, kind: bytes, body: bytes) -> Message:
        statements: list[Statement] = []
        match kind:
            case b"Q":
                statements = await self._read(texts(body, 1)[0])
            case b"P":
                name, text, _ = texts(body, 2)
                found = await self._read(text)
                # Of several in one Parse, PostgreSQL says that it takes none.
                statements = found if len(found) == 1 else [Statement(text.decode())]
                self._known[b"S" + name] = statements
            case b"B":
                portal, name, _ = texts(body, 2)
                statements = self._known[b"P" + portal] = self._known.get(b"S" + name, [])
            case b"E":
                statements = self._known.get(b"P" + texts(body, 1)[0], [])
            case b"C":
                self._known.pop(body[:-1], None)
            case b"D" | b"H" | b"S":
                pass
            case _:
                raise ProtocolError("invalid frontend message type")
        return Message(kind, body, statements)

    async def _read(self, text: bytes) -> list[Statement]:
        if len(text) > MAX_STATEMENT:
            return [Statement("", Refusal("54000", f"statement longer than {MAX_STATEMENT} bytes"))]
        try:
            sql = self._cluster.rewrite(text.decode())
        except UnicodeDecodeError:
            return [Statement("", Refusal("22021", 'invalid byte sequence for encoding "UTF8"'))]
        if len(sql) > MAX_PARSED_HERE:
            async with self._cluster.parsers:
                return await read_apart(sql)
        return _read_short(sql) if len(sql) < SHORT else read(sql)

    async def _copy_in(self, *, to_sync: bool) -> None:
        """Pass on the rows of a COPY, up to the message that ends it, or to the Sync after that."""
        kind, last = b"d", b"cf"
        while kind not in last:
            kind, body = await self._receive()
            if kind not in b"dcfSH":
                self._kept = kind, body
                # It ends a COPY that has not failed already; else PostgreSQL ignores this.
                self._server.writer.write(message(b"f", b"unexpected message\0"))
                return
            self._server.writer.write(message(kind, body))
            await self._server.writer.drain()
            if to_sync and kind in b"cf":
                last = b"S"

    # --- a group of messages, run ---

    async def _serve(self, group: list[Message]) -> None:
        """Have PostgreSQL do what a client asks for together."""
        if self._skipping:  # after an error, it hears nothing but a Sync
            group = [one for one in group[-1:] if one.kind == b"S"]
        if not group:
            return
        executed = [one for told in group if told.kind in b"QBE" for one in told.statements]
        kinds = {one.kind for one in executed if not one.refusal}
        writes = any(one.writes for one in executed)
        transaction, was_open = self.transaction, self.is_open
        if "DDL" in kinds and self._state != b"E":
            self._cluster.schema_changes(self)
        goes_on = bool(transaction.changes and executed) and kinds != {"ROLLBACK"}
        async with contextlib.AsyncExitStack() as turn:
            mine = False
            if self._state != b"E" and not transaction.lost and (writes or goes_on):
                alone = self._state == b"I" and "BEGIN" not in kinds
                mine = await turn.enter_async_context(self._cluster.turn(self, alone=alone))
            async with self._mutex:
                if goes_on and transaction.taken_back:
                    transaction.taken_back = False
                    if await self._ask(*transaction.make_again()):
                        await self._go_on_in_copies(executed)
                elif transaction.lost and self.is_open:
                    await self._go_on_in_copies(executed)
                certain = transaction.lost or "COPY" in kinds or not (writes or "BEGIN" in kinds)
                self._held = None if certain else bytearray()
                if kinds == {"COMMIT"}:
                    self._cluster.let_go(self)
                    await turn.aclose()  # others need not wait for the disk
                before = list(transaction.changes)
                code = await self._exchange(group)
                # To a transaction that has begun just now, the error is no other's commit.
                same = was_open and self.transaction is transaction and self._state == b"E"
                if same and self._held is not None and code in MAYBE_LOST:
                    transaction.changes, self._skipping = before, False
                    self._held.clear()
                    await self._go_on_in_copies(executed)
                    await self._exchange(group, again=True)
                await self._settle(executed, mine=mine)
                self._pass_on()
                self._hurried = False

    def _tell(self, said: bytes) -> None:
        if self._held is None:
            self._client.writer.write(said)
            return
        self._held += said
        if len(self._held) > MAX_GROUP:
            self._pass_on()

    def _pass_on(self) -> None:
        held, self._held = self._held, None
        if held:
            self._client.writer.write(held)

    async def _settle(self, executed: list[Statement], *, mine: bool) -> None:
        """After a group: open the transaction, note what it did, or end it."""
        transaction = self.transaction
        if self._state == b"I":
            self._end_transaction()
        if not self.is_open:
            return
        transaction.used |= any(one.kind not in {"BEGIN", "SET"} for one in executed)
        if not transaction.opened:
            await self._ask(*OPEN)
            transaction.opened = True
        if transaction.lost:
            return
        transaction.settings += [one.text for one in executed if one.kind == "SET"]
        locks = frozenset().union(*(one.locks for one in executed))
        touch = [f"SELECT dsql_rules.touch(to_regclass({literal(name)}))" for name in locks]
        if touch and await self._ask(*touch):
            await self._go_on_in_copies([])
        elif mine and transaction.changes:
            self._cluster.holder = self

    async def _exchange(self, group: list[Message], *, again: bool = False) -> str:
        """Have PostgreSQL hear messages, and tell the client what it answers, as DSQL would say it.

        Args:
            group: the messages.
            again: PostgreSQL has heard them before.

        Returns:
            The SQLSTATE of the error, if there is one.

        """
        due: deque[Due] = deque()
        self._server.writer.write(b"".join(self._say(one, due, again=again) for one in group))
        await self._server.writer.drain()
        code = ""
        while due:
            kind, said = await self._next()
            answer = due.popleft() if kind in due[0].kinds else None
            match kind:
                case b"N" if self.transaction.note(said):
                    continue
                case b"E":
                    code = error_fields(said[5:]).get("C", "")
                    said = self._failed(said, code)
                    while due and due[0].kinds != b"Z":
                        due.popleft()
                    self._skipping = True
                case b"C" if answer:
                    said = self._completed(said, answer.of)
                case b"G":
                    copying = self._copy_in(to_sync=group[-1].kind != b"Q")
                    self._copying = asyncio.create_task(copying)
                    if group[-1].kind == b"H":
                        due.append(Due(b"Z"))  # of the Sync that comes after the rows
                case b"Z":
                    self._state = said[5:]
                    self._skipping = False
            if not ((answer and answer.hidden) or (self._hurried and kind in ROWS)):
                self._tell(said)
            if not self._hurried:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None) as self._waiting:
                        await self._client.writer.drain()
                self._waiting = None
        if group[-1].kind == b"H" and self._state != b"I" and not self._copying:
            await self._ask()  # a Sync: how the transaction is, is known then
        return code

    def _say(self, told: Message, due: deque[Due], *, again: bool) -> bytes:
        """What PostgreSQL is told in the place of a message; adds what it will answer."""
        kind, body, statements = told
        if kind == b"Q":
            return self._say_query(statements, due)
        if kind in b"PB" and statements and (refusal := statements[0].refusal):
            return _say_refusal(refusal, statements[0].text, due)
        said = b""
        if kind == b"P":
            name, _, types = texts(body, 2)
            body = b"\0".join((name, statements[0].text.encode(), types))
            if again:
                due.append(Due(b"3", hidden=True))
                said = message(b"C", b"S" + name + b"\0")
        if kind in ANSWERS:
            due.append(Due(ANSWERS[kind], of=statements[0] if statements else Statement("")))
        return said + message(kind, body)

    def _say_query(self, statements: list[Statement], due: deque[Due]) -> bytes:
        refusal = statements[0].refusal if len(statements) == 1 else None
        if refusal and refusal.code == SYNTAX:
            failing = _say_refusal(refusal, statements[0].text, due)
            due.append(Due(b"Z"))
            return failing + message(b"S")
        said = []
        for one in statements:
            due.append(Due(b"CIs", of=one))
            said.append(_refusing(one.refusal) if one.refusal else one.text)
            if one.kind == "BEGIN" and self._state == b"I" and not self.transaction.opened:
                due.extend([Due(b"C", hidden=True)] * len(OPEN))
                said += OPEN
                self.transaction.opened = True
        due.append(Due(b"Z"))
        return message(b"Q", "\n;".join(said).encode() + b"\0")

    # --- conflicts ---

    async def take_back(self) -> None:
        """Undo the transaction's changes in PostgreSQL: it is another session's turn."""
        with contextlib.suppress(OSError, IncompleteReadError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._mutex.acquire()
            try:
                if self.is_open and not self.transaction.lost:
                    self.transaction.taken_back = True
                    await self._ask(TAKE_BACK, *self.transaction.settings)
                self._cluster.let_go(self)
            finally:
                self._mutex.release()

    async def _go_on_in_copies(self, executed: list[Statement]) -> None:
        """Let a transaction that has lost run these statements in copies of tables, or abort it."""
        transaction = self.transaction
        sql: list[str] = []
        if not transaction.lost:
            transaction.lost, transaction.doomed = True, CONFLICT
            self._cluster.let_go(self)
            changed = dict.fromkeys(literal(change.table) for change in transaction.changes)
            sql = [TAKE_BACK, *transaction.settings, NEW_PATH, *map(COPY.format, changed)]
            sql += transaction.make_again()
        sql += [COPY.format(literal(t)) for one in executed for t in one.changes | one.locks]
        ends = any(one.kind == "COMMIT" or one.has_schema for one in executed)
        if ends or (sql and await self._ask(*sql)):
            await self._abort(CONFLICT)

    async def doom(self, transaction: Transaction, cancel: Callable[[], Awaitable[object]]) -> None:
        """Fail a transaction since the schema has changed. Its locks are released at once.

        Args:
            transaction: the one that is to fail.
            cancel: ends the statement that PostgreSQL is at; so does a client that does not read.

        """
        turn = asyncio.ensure_future(self._mutex.acquire())
        await asyncio.wait({turn}, timeout=PATIENCE_S)
        if not turn.done() and self.transaction is transaction:
            transaction.doomed, self._hurried = CHANGED, True
            if self._waiting:
                self._waiting.reschedule(0)
            await cancel()
        await turn
        try:
            with contextlib.suppress(OSError, IncompleteReadError):
                if self.transaction is transaction and self.is_open:
                    await self._abort(CHANGED)
        finally:
            self._mutex.release()

    async def _abort(self, refusal: Refusal) -> None:
        """Abort the transaction in PostgreSQL; the client is told why later."""
        self.transaction.doomed = refusal
        self.transaction.changes.clear()
        await self._ask(_refusing(refusal))

    async def _ask(self, *statements: str) -> str:
        """Run SQL that the client did not send. Returns the SQLSTATE of an error, or nothing."""
        self._server.writer.write(b"".join(map(wire.run, statements)) + message(b"S"))
        code = ""
        while True:
            kind, said = await self._next()
            match kind:
                case b"E":
                    code = error_fields(said[5:]).get("C", "XX000")
                case b"N":
                    self.transaction.note(said)
                case b"S":
                    self._tell(said)
                case b"Z":
                    self._state = said[5:]
                    return code

    # --- from PostgreSQL ---

    async def _next(self) -> tuple[bytes, bytes]:
        """What PostgreSQL says next: a message and its kind, or several that hold rows."""
        said = self._said
        while True:
            end = rows = 0
            while (end := wire.end_of_message(said, rows)) and said[rows] in ROWS:
                rows = end
            if cut := rows or end:
                whole = bytes(said[:cut])
                del said[:cut]
                return whole[:1], whole
            piece = await self._server.reader.read(wire.BUFFER)
            if not piece:
                raise IncompleteReadError(b"", 5)
            said += piece

    def _completed(self, said: bytes, one: Statement) -> bytes:
        if one.kind in {"COMMIT", "ROLLBACK"}:  # here: another one may begin in the same string
            doomed, used = self.transaction.doomed, self.transaction.used
            self._end_transaction()
            if one.kind == "COMMIT" and doomed and said[5:] == b"ROLLBACK\0":
                return error(doomed, "ERROR") if used else message(b"C", b"COMMIT\0")
        return message(b"C", one.tag.encode() + b"\0") if one.tag else said

    def _failed(self, said: bytes, code: str) -> bytes:
        """An error as DSQL words it: a wait that was too long, or endless, is a conflict."""
        doomed, self.transaction.doomed = self.transaction.doomed, None
        if code in {"25P02", CANCELED} and doomed:
            return error(doomed, "ERROR")
        # Of a transaction that was taken back, rows that are still to be fetched are gone as well.
        if code in WAITED or (code == NO_PORTAL and self.transaction.changes):
            return error(CONFLICT, "ERROR")
        if b" dsql_rules." not in said and b" sys." not in said:
            return said
        kept = (one for one in said[5:].split(b"\0") if not one.startswith(b"W"))  # where it was
        return message(b"E", b"\0".join(kept))


@lru_cache(maxsize=256)
def _read_short(sql: str) -> list[Statement]:
    return read(sql)


def _say_refusal(refusal: Refusal, text: str, due: deque[Due]) -> bytes:
    """What makes PostgreSQL fail, skip what follows, and abort a transaction.

    It parses what could not be parsed here, and says where the error is. It never runs that: its
    grammar is another version's, and may take it.
    """
    kinds, said = b"3312C", wire.run(_refusing(refusal))
    if refusal.code == SYNTAX:
        kinds, said = b"331" + kinds, wire.prepare(text) + said
    due.extend(Due(bytes([kind]), hidden=True) for kind in kinds)
    return said


def _refusing(refusal: Refusal) -> str:
    return f"SELECT dsql_rules.refuse({', '.join(map(literal, refusal))})"
