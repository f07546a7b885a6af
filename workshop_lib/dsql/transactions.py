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
from workshop_lib.dsql.allowed import Refusal, not_supported
from workshop_lib.dsql.conflicts import RETRYABLE
from workshop_lib.dsql.statements import Statement, literal, read, redirect
from workshop_lib.dsql.wire import ProtocolError, Side, error, error_fields, message, query, texts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from workshop_lib.dsql.front import Cluster

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
CHANGED_ROWS, COPIED = "DSQLW", "DSQLC"
"""SQLSTATEs of notices from rules.sql: what a statement changed, and of which table is a copy."""
LOOKED_AT = frozenset(b"123CIsTnZENGS")
"""Kinds of PostgreSQL's messages that are not passed on unseen."""
COPY_DATA = frozenset(b"dcf")


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
        doomed: why it will fail, if the client has not been told.
        copies: schemas and names of the tables that it works on copies of, once it has lost.

    """

    opened: bool = False
    used: bool = False
    changes: list[Change] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    taken_back: bool = False
    doomed: Refusal | None = None
    copies: set[tuple[str, str]] | None = None

    def note(self, notice: bytes) -> bool:
        """Remember what rules.sql tells of a change or a copy. Returns whether it is from there."""
        fields = error_fields(notice[5:])
        code, name, before = fields.get("C"), fields.get("M", ""), fields.get("D", "")
        if code == COPIED and self.copies is not None:
            self.copies.add((name, before))
        elif code == CHANGED_ROWS:
            change = Change(name, before, fields.get("H", ""))
            last = self.changes[-1] if self.changes else None
            if last and last.table == change.table and not (last.before or change.before):
                self.changes[-1] = last._replace(after=f"{last.after[:-1]},{change.after[1:]}")
            else:
                self.changes.append(change)
        return code in {COPIED, CHANGED_ROWS}

    def take_back(self) -> str:
        """SQL that undoes its changes and keeps its settings."""
        return TAKE_BACK + ";".join(self.settings)

    def make_again(self) -> str:
        """SQL that makes its changes again, in the tables or in their copies."""
        in_copies = self.copies is not None
        return ";".join(
            f"SELECT dsql_rules.replay({', '.join(map(literal, change))}, {in_copies})"
            for change in self.changes
        )


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
        self._prepared: dict[bytes, tuple[Statement, bytes]] = {}
        self._portals: dict[bytes, Statement] = {}
        self._mutex = asyncio.Lock()
        self._incoming: asyncio.Future[tuple[bytes, bytes]] | None = None
        self._copying: asyncio.Task[None] | None = None
        self._said = bytearray()
        self._held: bytearray | None = None
        self._unsynced = self._skipping = self._suspended = self._unnamed = False

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
        self._client.when_gone = self._server.writer.close
        self._server.when_gone = self._client.writer.close
        try:
            while group := await self._group():
                await self._serve(group)
        finally:
            self._end_transaction()
            for task in (self._incoming, self._copying):
                if task:
                    task.cancel()

    def _end_transaction(self) -> None:
        self.transaction = Transaction()
        self._cluster.let_go(self)

    # --- from the client ---

    async def _receive(self) -> tuple[bytes, bytes]:
        incoming, self._incoming = self._incoming, None
        return await (incoming or wire.receive(self._client.reader))

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
            if kind[0] in COPY_DATA:  # of a COPY that has failed
                continue
            group.append(self._understand(kind, body))
            size += len(body)
            if kind in b"QSF" or (kind == b"H" and await self._is_awaited(group)):
                return group
            if size > MAX_GROUP:
                return [*group, Message(b"H", b"", [])]

    async def _is_awaited(self, group: list[Message]) -> bool:
        """Whether the client awaits an answer after a Flush."""
        if any(one.kind in b"BE" for one in group):
            self._incoming = asyncio.create_task(wire.receive(self._client.reader))
            await asyncio.wait({self._incoming}, timeout=FLUSH_S)
            return not self._incoming.done()
        return True

    def _understand(self, kind: bytes, body: bytes) -> Message:
        match kind:
            case b"Q":
                (text, rest) = texts(body, 1)
                if rest:
                    raise ProtocolError("invalid message format")
                return Message(kind, body, self._read(text))
            case b"P":
                name, text, rest = texts(body, 2)
                statements = self._read(text)
                # Of several in one Parse, PostgreSQL says that it takes none.
                one = statements[0] if len(statements) == 1 else Statement(text.decode())
                self._prepared[name] = one, rest
                return Message(kind, body, [one])
            case b"B":
                portal, name, rest = texts(body, 2)
                if name not in self._prepared:  # PostgreSQL says so
                    return Message(kind, body, [])
                one, types = self._prepared[name]
                self._portals[portal] = one
                return Message(kind, body, [one], types)
            case b"E":
                (portal, _) = texts(body, 1)
                return Message(kind, body, [self._portals.get(portal, Statement(""))])
            case b"C":
                closed = self._prepared if body[:1] == b"S" else self._portals
                closed.pop(body[1:-1], None)
                return Message(kind, body, [])
            case b"S" | b"F" | b"D" | b"H":
                return Message(kind, body, [])
        raise ProtocolError("invalid frontend message type")

    def _read(self, text: bytes) -> list[Statement]:
        if len(text) > MAX_STATEMENT:
            return [Statement("", Refusal("54000", f"statement longer than {MAX_STATEMENT} bytes"))]
        try:
            sql = self._cluster.rewrite(text.decode())
        except UnicodeDecodeError:
            return [Statement("", Refusal("22021", 'invalid byte sequence for encoding "UTF8"'))]
        return _read_short(sql) if len(sql) < SHORT else read(sql)

    async def _copy_in(self, last: bytes) -> None:
        """Pass on the rows of a COPY, up to the message that ends it."""
        while True:
            kind, body = await self._receive()
            if kind not in b"dcfSH":
                self._incoming = asyncio.get_running_loop().create_future()
                self._incoming.set_result((kind, body))
                # It ends a COPY that has not failed already; else PostgreSQL ignores this.
                self._server.writer.write(message(b"f", b"unexpected message\0"))
                return
            self._server.writer.write(message(kind, body))
            await self._server.writer.drain()
            if kind in last:
                return

    # --- a group of messages, run ---

    async def _serve(self, group: list[Message]) -> None:
        """Have PostgreSQL do what a client asks for together."""
        if self._skipping:  # after an error, it hears nothing but a Sync
            group = [one for one in group[-1:] if one.kind == b"S"]
        if not group:
            return
        whole = group[-1].kind in b"QSF"
        executed = [one for told in group if told.kind in b"QE" for one in told.statements]
        kinds = {one.kind for one in executed if not one.refusal}
        writes = any(one.writes for one in executed)
        transaction, was_open = self.transaction, self.is_open
        if "DDL" in kinds and self._state != b"E":
            self._cluster.schema_changes(self)
        goes_on = bool(transaction.changes and executed) and kinds != {"ROLLBACK"}
        async with contextlib.AsyncExitStack() as turn:
            mine = False
            if whole and self._state != b"E" and transaction.copies is None and (writes or goes_on):
                alone = self._state == b"I" and "BEGIN" not in kinds
                mine = await turn.enter_async_context(self._cluster.take_turn(self, alone=alone))
            async with self._mutex:
                if goes_on and transaction.taken_back:
                    await self._make_again(ends="COMMIT" in kinds)
                if transaction.copies is not None:
                    await self._go_on_in_copies(executed, kinds)
                elif whole and (writes or "BEGIN" in kinds) and "COPY" not in kinds:
                    self._held = bytearray()
                if kinds == {"COMMIT"}:
                    self._cluster.let_go(self)
                    await turn.aclose()  # others need not wait for the disk
                before = list(transaction.changes)
                code = await self._exchange(group)
                # To a transaction that has begun just now, the error is no other's commit.
                same = was_open and self.transaction is transaction
                if same and self._held is not None and code in MAYBE_LOST and self._state == b"E":
                    transaction.changes = before
                    self._held.clear()
                    self._cluster.let_go(self)
                    await turn.aclose()  # the error let go of its rows; copies take a while
                    await self._lose()
                    await self._go_on_in_copies(executed, kinds)
                    await self._exchange(group, again=True)
                if whole:
                    await self._settle(executed, mine=mine)
                self._release()

    async def _settle(self, executed: list[Statement], *, mine: bool) -> None:
        """After a group: open the transaction, note what it did, or end it."""
        transaction = self.transaction
        if self._state == b"I":
            self._end_transaction()
            self._portals.clear()
        if not self.is_open:
            return
        transaction.used |= any(one.kind not in {"BEGIN", "SET"} for one in executed)
        if not transaction.opened:
            await self._ask(OPEN)
            transaction.opened = True
        if transaction.copies is not None:
            return
        transaction.settings += [one.text for one in executed if one.kind == "SET"]
        for name in frozenset().union(*(one.locks for one in executed)):
            if await self._ask(f"SELECT dsql_rules.touch(to_regclass({literal(name)}))"):
                await self._lose()
                return
        if mine and transaction.changes:
            self._cluster.holder = self

    async def _exchange(self, group: list[Message], *, again: bool = False) -> str:
        """Pass messages on, then the answers. Returns the SQLSTATE of the error, if there is one.

        Args:
            group: the messages.
            again: PostgreSQL has heard them before.

        """
        due: deque[Due] = deque()
        said = [self._say(one, due, again=again) for one in group]
        self._unnamed = False
        self._unsynced = group[-1].kind == b"H"
        self._server.writer.write(b"".join(said))
        await self._server.writer.drain()
        return await self._pass_on(due, extended=group[-1].kind != b"Q")

    def _say(self, told: Message, due: deque[Due], *, again: bool) -> bytes:
        """What PostgreSQL is told in the place of a message; adds what it will answer."""
        kind, body, statements, rest = told
        match kind:
            case b"Q":
                return self._say_query(body, statements, due)
            case b"P":
                return self._say_parse(body, statements[0], due, again=again)
            case b"B" if statements:
                portal, name, values = texts(body, 2)
                # It has to use a copy, or the unnamed statement is gone: `_ask` has replaced it.
                if not self.transaction.copies and (name or self._unnamed):
                    due.append(Due(b"2"))
                    return message(kind, body)
                due.extend([Due(b"1", hidden=True), Due(b"2")])
                text = self._text(statements[0]).encode()
                return message(b"P", b"\0".join((b"", text, rest))) + message(
                    b"B", b"\0".join((portal, b"", values))
                )
            case b"E":
                due.append(Due(b"CIs", of=statements[0]))
            case b"F":
                due.append(Due(b"Z"))
                return query(_refusing(not_supported("unsupported statement: FunctionCall")))
            case b"B" | b"C" | b"D" | b"S":
                due.append(Due({b"B": b"2", b"C": b"3", b"D": b"Tn", b"S": b"Z"}[kind]))
        return message(kind, body)

    def _say_query(self, body: bytes, statements: list[Statement], due: deque[Due]) -> bytes:
        said = []
        for one in statements:
            due.append(Due(b"CIs", of=one))
            said.append(self._text(one))
            if one.kind == "BEGIN" and self._state == b"I" and not self.transaction.opened:
                due.extend([Due(b"C", hidden=True)] * 3)
                said.append(OPEN)
                self.transaction.opened = True
        due.append(Due(b"Z"))
        return query("\n;".join(said)) if said else message(b"Q", body)

    def _say_parse(self, body: bytes, one: Statement, due: deque[Due], *, again: bool) -> bytes:
        if one.refusal:
            # PostgreSQL fails with this, then skips what follows, and aborts a transaction.
            due.extend([Due(b"1", hidden=True), Due(b"2", hidden=True), Due(b"C")])
            return (
                message(b"P", f"\0{_refusing(one.refusal)}\0\0\0".encode())
                + message(b"B", b"\0\0" + bytes(6))
                + message(b"E", b"\0" + bytes(4))
            )
        name, _, rest = texts(body, 2)
        self._unnamed |= not name
        said = message(b"P", b"\0".join((name, one.text.encode(), rest)))
        if again:
            due.append(Due(b"3", hidden=True))
            said = message(b"C", b"S" + name + b"\0") + said
        due.append(Due(b"1"))
        return said

    def _text(self, one: Statement) -> str:
        if one.refusal:
            return _refusing(one.refusal)
        copies = self.transaction.copies
        return redirect(one.text, copies) if copies else one.text

    # --- conflicts ---

    async def take_back(self) -> None:
        """Undo the transaction's changes in PostgreSQL: it is another session's turn."""
        transaction = self.transaction
        with contextlib.suppress(OSError, IncompleteReadError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._mutex.acquire()
            try:
                if not self.is_open or self._unsynced or transaction.copies is not None:
                    return
                if self._suspended:  # what is still to be fetched would be gone as well
                    await self._abort(CONFLICT)
                    return
                transaction.taken_back = True
                await self._ask(transaction.take_back())
            finally:
                self._mutex.release()
        self._cluster.let_go(self)

    async def _make_again(self, *, ends: bool) -> None:
        """Make the transaction's changes again, or learn that it has lost."""
        if await self._ask(self.transaction.make_again()):
            # At its COMMIT a transaction needs no copies, and others wait for this turn.
            await (self._abort(CONFLICT) if ends else self._lose())
        self.transaction.taken_back = False

    async def _lose(self) -> None:
        transaction = self.transaction
        transaction.doomed, transaction.copies = CONFLICT, set()
        self._cluster.let_go(self)
        if await self._ask(transaction.take_back()) or not (
            await self._copy(one.table for one in transaction.changes)
            and not await self._ask(transaction.make_again())
        ):
            await self._abort(CONFLICT)

    async def _go_on_in_copies(self, executed: list[Statement], kinds: set[str]) -> None:
        """Prepare the next statements of a transaction that has lost; at COMMIT, abort it."""
        if self.is_open:
            names = frozenset().union(*(one.changes | one.locks for one in executed))
            if "COMMIT" in kinds or not await self._copy(names):
                await self._abort(CONFLICT)

    async def _copy(self, names: Iterable[str]) -> bool:
        """Make copies of these tables that are to be used in their place."""
        for name in dict.fromkeys(names):
            if await self._ask(f"SELECT dsql_rules.copy_table(to_regclass({literal(name)}))"):
                return False
        return True

    async def doom(self, transaction: Transaction) -> None:
        """Fail a transaction since the schema has changed. Its locks are released at once."""
        with contextlib.suppress(OSError, IncompleteReadError):
            async with self._mutex:
                if self.transaction is transaction and self.is_open:
                    await self._abort(CHANGED)

    async def _abort(self, refusal: Refusal) -> None:
        """Abort the transaction in PostgreSQL; the client is told why later."""
        transaction = self.transaction
        transaction.doomed, transaction.copies, transaction.taken_back = refusal, None, False
        transaction.changes.clear()
        await self._ask(_refusing(refusal))

    async def _ask(self, sql: str) -> str:
        """Run SQL that the client did not send. Returns the SQLSTATE of an error, or nothing."""
        if self._unsynced:
            self._server.writer.write(message(b"S"))
            await self._pass_on(deque([Due(b"Z", hidden=True)]))
        self._server.writer.write(query(sql))
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
        """What PostgreSQL says next: a message, or several that are passed on unseen (kind b"")."""
        said = self._said
        while True:
            unseen = start = 0
            while len(said) >= start + 5:
                end = start + 1 + int.from_bytes(said[start + 1 : start + 5])
                if len(said) < end:
                    break
                if said[start] not in LOOKED_AT:
                    unseen = start = end
                    continue
                if unseen:
                    break
                whole = bytes(said[:end])
                del said[:end]
                return whole[:1], whole
            if unseen:
                whole = bytes(said[:unseen])
                del said[:unseen]
                return b"", whole
            piece = await self._server.reader.read(wire.BUFFER)
            if not piece:
                raise IncompleteReadError(b"", 5)
            said += piece

    async def _pass_on(self, due: deque[Due], *, extended: bool = True) -> str:
        """Tell the client what PostgreSQL answers, as DSQL would say it, until all is there."""
        code = ""
        while due:
            kind, said = await self._next()
            answer = due.popleft() if kind and kind in due[0].kinds else None
            match kind:
                case b"N" if self.transaction.note(said):
                    continue
                case b"E":
                    code = error_fields(said[5:]).get("C", "")
                    said = self._failed(said, code)
                    while due and due[0].kinds != b"Z":
                        due.popleft()
                    self._skipping = not due
                case b"C" if answer:
                    said = self._completed(said, answer.of)
                case b"G":
                    self._copying = asyncio.create_task(self._copy_in(b"S" if extended else b"cf"))
                    self._release()
                case b"Z":
                    self._state = said[5:]
                    self._unsynced = self._skipping = False
            if kind and kind in b"CIs":
                self._suspended = kind == b"s"
            if not (answer and answer.hidden):
                self._tell(said)
            await self._client.writer.drain()
        return code

    def _tell(self, said: bytes) -> None:
        if self._held is None:
            self._client.writer.write(said)
            return
        self._held += said
        if len(self._held) > MAX_HELD:
            self._release()

    def _release(self) -> None:
        """Tell the client what was held back."""
        if self._held is not None:
            held, self._held = self._held, None
            self._client.writer.write(held)

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
        if code == "25P02" and doomed:
            return error(doomed, "ERROR")
        fields = error_fields(said[5:])
        severity = fields.get("S", "ERROR")
        if code in WAITED:
            return error(CONFLICT, severity)
        if not any(ours in fields.get("W", "") for ours in (" dsql_rules.", " sys.")):
            return said
        more = {letter: fields[letter] for letter in "DH" if letter in fields}
        return error(Refusal(code, fields.get("M", "")), severity, **more)


@lru_cache(maxsize=256)
def _read_short(sql: str) -> list[Statement]:
    return read(sql)


def _refusing(refusal: Refusal) -> str:
    return f"SELECT dsql_rules.refuse({', '.join(map(literal, refusal))})"
