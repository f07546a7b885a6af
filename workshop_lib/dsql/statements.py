"""SQL as Aurora DSQL takes it: a string parsed into statements, allowed, refused or rewritten."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import NamedTuple

import pgparse

from workshop_lib.dsql.allowed import Refusal, refuse
from workshop_lib.dsql.parse_tree import Node, nodes, options, parts

TOO_DEEP = Refusal("54001", "stack depth limit exceeded")
NO_ASYNC = Refusal("42601", 'syntax error at or near "ASYNC"')
CHANGES = {"InsertStmt", "UpdateStmt", "DeleteStmt"}
DEFINES = ("Create", "Alter", "Drop", "Grant", "Rename", "Index", "View", "Comment")
"""How the kinds of statements begin that change the schema, or who may do what."""
JOBS = {"IndexStmt": ("INDEX_BUILD", "CREATE INDEX"), "AlterTableStmt": ("VALIDATE", "ALTER TABLE")}
"""What ASYNC may stand in, with the job that it begins and the command tag."""


class Statement(NamedTuple):
    """One statement of a string.

    Attributes:
        text: what PostgreSQL can run in its place.
        refusal: what DSQL answers instead of running it; None where it runs.
        tag: the command tag that DSQL answers with, where PostgreSQL's would be another.
        kind: BEGIN, COMMIT, ROLLBACK, SET, COPY (from the client), CALL or DDL; else empty.
        changes: the tables whose rows it changes, as SQL names them.
        locks: the tables whose rows it may lock.

    """

    text: str
    refusal: Refusal | None = None
    tag: str = ""
    kind: str = ""
    changes: frozenset[str] = frozenset()
    locks: frozenset[str] = frozenset()

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
    """The statements of a string. One that cannot be parsed is left whole: the server says why.

    Args:
        sql: what a client sent, without a byte 0.

    """
    places: list[int] = []
    try:
        while True:
            try:
                found = pgparse.parse(sql)
            except pgparse.PGQueryError as error:
                place = _async_before(sql, error.position - 1)
                if place is None:
                    return [Statement(sql, Refusal("42601", error.message) if places else None)]
            else:
                # CREATE INDEX ASYNC ON t: parsed as an index called async.
                place = next(filter(None, (_async_unnamed(sql, one) for one in found)), None)
                if place is None:
                    break
            places.append(place)
            sql = f"{sql[:place]}     {sql[place + 5 :]}"
    except RecursionError:
        return [Statement(sql, TOO_DEEP)]
    raw = sql.encode()
    starts = [len(sql[:place].encode()) for place in places]
    return [_statement(raw, one, starts) for one in found]


def _statement(raw: bytes, parsed: Node, async_at: list[int]) -> Statement:
    start = parsed.get("stmt_location", 0)
    end = start + parsed.get("stmt_len", len(raw) - start)
    text = raw[start:end].decode()
    ((kind, node),) = parsed["stmt"].items()
    is_async = any(start <= place < end for place in async_at)
    if is_async:
        if kind not in JOBS:
            return Statement(text, NO_ASYNC)
        node["async"] = True
    if kind == "IndexStmt":
        node["written"] = raw[node["relation"]["location"] : end].decode().partition("(")[0]
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
    if commands and all("Trig" in one["subtype"] for one in commands):
        # On DSQL there are no triggers, here the rules are some.
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
    return Statement(
        text, None, "", short, *(frozenset(map(_name, one)) for one in (changes, locks))
    )


def _name(relation: Node) -> str:
    """A table's name as SQL writes it."""
    names = [relation.get("schemaname"), relation["relname"]]
    return ".".join('"{}"'.format(n.replace('"', '""')) for n in names if n)


def redirect(sql: str, shadows: Collection[tuple[str, str]]) -> str:
    """A string of statements that uses the temporary table of a name in the place of a table.

    Args:
        sql: where a name has no schema, the temporary table's comes first anyway.
        shadows: schemas and names of such tables.

    """
    try:
        found = [one for _, one in nodes(pgparse.parse(sql)) if "relname" in one]
    except (pgparse.PGQueryError, RecursionError):
        return sql
    raw = sql.encode()
    named = {one["location"]: (one.get("schemaname"), one["relname"]) for one in found}
    for place, name in sorted(named.items(), reverse=True):
        if name in shadows:
            schema = str(name[0])
            if raw[place : place + 1] == b'"':
                schema = '"{}"'.format(schema.replace('"', '""'))
            raw = raw[:place] + b"pg_temp" + raw[place + len(schema.encode()) :]
    return raw.decode()


def literal(text: str) -> str:
    """A text as SQL writes it."""
    return "'{}'".format(text.replace("'", "''"))


def _in_body(kind: str, node: Node) -> Refusal | None:
    """What is refused in the text of a function in SQL."""
    if kind != "CreateFunctionStmt":
        return None
    bodies = parts(options(node).get("as", {}), "List", "items", "String", "sval")
    return next(filter(None, map(check, bodies)), None)


def _async_before(sql: str, place: int) -> int | None:
    """Where ASYNC stands if it is the word before this one, which PostgreSQL did not expect."""
    *_, word = sql[:place].split() or [""]
    return sql[:place].rindex(word) if word.upper() == "ASYNC" else None


def _async_unnamed(sql: str, parsed: Node) -> int | None:
    """Where ASYNC stands in CREATE INDEX ASYNC ON t, which reads as an index called async."""
    node = parsed["stmt"].get("IndexStmt", {})
    if node.get("idxname") != "async":
        return None
    before = sql.encode()[: node["relation"]["location"]].decode().rstrip()
    return _async_before(sql, len(before) - len("ON"))
