"""SQL as Aurora DSQL takes it: a string parsed into statements, allowed, refused or rewritten."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import NamedTuple

import msgspec
import pgparse

from workshop_lib.dsql.allowed import Refusal, refuse
from workshop_lib.dsql.parse_tree import Node, nodes, options, parts, text as text_of

STACK_BYTES = 512 * 1024 * 1024
"""Address space, not memory: enough for the parser to go down through any text."""
MAX_STATEMENTS = 3000
TOO_MANY = Refusal("54000", f"more than {MAX_STATEMENTS} statements in one string")
TOO_DEEP = Refusal("54001", "stack depth limit exceeded")
SYNTAX = "42601"
"""SQLSTATE of what cannot be parsed."""
NO_ASYNC = Refusal(SYNTAX, 'syntax error at or near "ASYNC"')
CHANGES = {"InsertStmt", "UpdateStmt", "DeleteStmt"}
DEFINES = ("Create", "Alter", "Drop", "Grant", "Rename", "Index", "View", "Comment")
"""How the kinds of statements begin that change the schema, or who may do what."""
JOBS = {"IndexStmt": ("INDEX_BUILD", "CREATE INDEX"), "AlterTableStmt": ("VALIDATE", "ALTER TABLE")}
"""What ASYNC may stand in, with the job that it begins and the command tag."""


RESET_ALL = """
DO $$
DECLARE
    found pg_catalog.text;
BEGIN
    FOR found IN
        SELECT name FROM pg_catalog.pg_settings
         WHERE source OPERATOR(pg_catalog.=) 'session'
           AND NOT 'NO_RESET_ALL' OPERATOR(pg_catalog.=) ANY (
               pg_catalog.pg_settings_get_flags(name))
    LOOP
        EXECUTE pg_catalog.format('RESET %I', found);
    END LOOP;
END
$$
"""
"""It leaves alone what rules.sql notes of a transaction: pg_settings does not show it."""


class Statement(NamedTuple):
    """One statement of a string.

    Attributes:
        text: what PostgreSQL can run in its place.
        refusal: what DSQL answers instead of running it; None where it runs.
        tag: the command tag that DSQL answers with, where PostgreSQL's would be another.
        kind: BEGIN, COMMIT, ROLLBACK, SET, COPY (from the client), CALL or DDL; else empty.
        changes: the tables whose rows it changes, as SQL names them.
        locks: the tables whose rows it may lock.
        has_schema: it names a table by its schema.

    """

    text: str
    refusal: Refusal | None = None
    tag: str = ""
    kind: str = ""
    changes: frozenset[str] = frozenset()
    locks: frozenset[str] = frozenset()
    has_schema: bool = False

    @property
    def writes(self) -> bool:
        """Whether it takes part in conflicts, as far as its text shows."""
        return bool(self.changes or self.locks or self.kind in {"COPY", "CALL"})


def check(sql: str) -> Refusal | None:
    """The first refusal by which DSQL would answer to this string of statements, if any.

    >>> check("SELECT 1; TRUNCATE t")
    Refusal(code='0A000', message='unsupported statement: Truncate')
    """
    return next((one.refusal for one in read(sql) if one.refusal), None)


def read(sql: str) -> list[Statement]:
    """The statements of a string. One that cannot be parsed is left whole, with SYNTAX.

    Args:
        sql: what a client sent, without a byte 0.

    """
    async_at: list[int] = []
    while True:
        try:
            found = pgparse.parse(sql)
            break
        except RecursionError:
            return [Statement(sql, TOO_DEEP)]
        except pgparse.PGQueryError as error:
            before = sql[: error.position - 1].rstrip()  # what was not expected after it
            if before.upper().split()[-1:] != ["ASYNC"]:
                return [Statement(sql, Refusal(SYNTAX, error.message))]
            sql = before[:-5] + " " * 5 + sql[len(before) :]
            async_at.append(len(before[:-5].encode()))
    if len(found) > MAX_STATEMENTS:
        return [Statement("", TOO_MANY)]
    raw = sql.encode()
    return [_statement(raw, one, async_at) for one in found]


def parse_deep_texts() -> None:
    """Let threads that are started from now on go down through any text that is taken."""
    sys.setrecursionlimit(20_000)
    threading.stack_size(STACK_BYTES)


async def read_apart(sql: str) -> list[Statement]:
    """Like `read`, by a process of its own: nobody else waits, and its memory goes with it."""
    words = (sys.executable, "-m", __name__)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe)
    try:
        found, _ = await process.communicate(sql.encode())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        return [Statement("", TOO_DEEP)]
    return msgspec.json.decode(found, type=list[Statement])


def main() -> None:
    """Read the statements at the standard input, and write what `read` finds."""
    parse_deep_texts()

    def answer() -> None:
        found = read(sys.stdin.buffer.read().decode())
        sys.stdout.buffer.write(msgspec.json.encode(found))

    reading = threading.Thread(target=answer)
    reading.start()
    reading.join()


def _statement(raw: bytes, parsed: Node, async_at: list[int]) -> Statement:
    start = parsed.get("stmt_location", 0)
    end = start + parsed.get("stmt_len", len(raw) - start)
    text = raw[start:end].decode()
    ((kind, node),) = parsed["stmt"].items()
    is_async = any(start <= place < end for place in async_at)
    if kind == "IndexStmt":
        table = node["relation"]["location"]
        node["written"] = raw[table:end].decode().partition("(")[0]
        before = raw[start:table].decode()
        if node.get("idxname") == "async" and "ASYNC" in before.upper().split():
            # CREATE INDEX ASYNC ON t: parsed as an index called async.
            is_async, place = True, before.upper().rindex("ASYNC")
            text = text[:place] + " " * 5 + text[place + 5 :]
    if is_async:
        if kind not in JOBS:
            return Statement(text, NO_ASYNC)
        node["async"] = True
    if refusal := refuse(kind, node) or _in_body(kind, node):
        return Statement(text, refusal)
    return _rewritten(kind, node, text) or _as_it_is(kind, node, text)


def _rewritten(kind: str, node: Node, text: str) -> Statement | None:
    """A statement that PostgreSQL cannot run as it is, or not by DSQL's rules."""
    if "async" in node:
        job, tag = JOBS[kind]
        sql = f"SELECT dsql_rules.run_job('{job}', {literal(text)}) AS job_id"
        return Statement(sql, tag=tag, kind="DDL")
    commands = list(parts(node, "cmds", "AlterTableCmd"))
    if node.get("kind") == "VAR_RESET_ALL":
        return Statement(RESET_ALL, tag="RESET", kind="SET")
    # On DSQL there are no triggers, here the rules are some.
    if node.get("removeType") == "OBJECT_TRIGGER":
        return Statement("DO 'BEGIN END'", tag="DROP TRIGGER")
    if commands and all("Trig" in one["subtype"] for one in commands):
        return Statement("DO 'BEGIN END'", tag="ALTER TABLE")
    dropped = [one["name"] for one in commands if one["subtype"] == "AT_DropColumn"]
    if dropped:
        given = ", ".join(map(literal, (_name(node["relation"]), json.dumps(dropped), text)))
        return Statement(f"CALL dsql_rules.drop_columns({given})", tag="ALTER TABLE", kind="DDL")
    return None


def _as_it_is(kind: str, node: Node, text: str) -> Statement:
    found = list(nodes({kind: node}))
    changes = [one["relation"] for what, one in found if what in CHANGES]
    locking = any(what == "LockingClause" for what, _ in found)
    locks = [one for what, one in found if what == "RangeVar" and locking]
    short = kind.removesuffix("Stmt").upper()
    match kind:
        case "TransactionStmt":
            short = node["kind"].removeprefix("TRANS_STMT_").replace("START", "BEGIN")
        case "VariableSetStmt":
            short = "SET"
        case "CopyStmt" if "is_from" in node:
            changes.append(node["relation"])
        case "CallStmt":
            pass
        case _:
            short = "DDL" if kind.startswith(DEFINES) else ""
    has_schema = any("relname" in one and "schemaname" in one for _, one in found)
    changed, locked = (frozenset(map(_name, one)) for one in (changes, locks))
    return Statement(text, None, "", short, changed, locked, has_schema)


def _name(relation: Node) -> str:
    """A table's name as SQL writes it."""
    names = [relation.get("schemaname"), relation["relname"]]
    return ".".join('"{}"'.format(n.replace('"', '""')) for n in names if n)


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'{}'".format(text.replace("'", "''"))


def _in_body(kind: str, node: Node) -> Refusal | None:
    """What is refused in the text of a function in SQL; the server refuses other languages."""
    if kind != "CreateFunctionStmt":
        return None
    given = options(node)
    if text_of(given.get("language", {})) not in {"", "sql"}:
        return None
    bodies = parts(given.get("as", {}), "List", "items", "String", "sval")
    return next(filter(None, map(check, bodies)), None)


if __name__ == "__main__":
    main()
