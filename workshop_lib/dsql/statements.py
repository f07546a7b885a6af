"""SQL as Aurora DSQL takes it: a string parsed into statements, allowed, refused or rewritten."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import NamedTuple

import pgparse

from workshop_lib.dsql.allowed import Node, Refusal, nodes, refuse

TOO_DEEP = Refusal("54001", "stack depth limit exceeded")
ALTER, COMMIT = "ALTER TABLE", "COMMIT"
CHANGES = {"InsertStmt", "UpdateStmt", "DeleteStmt"}
DEFINES = ("Create", "Alter", "Drop", "Grant", "Rename", "Index", "View", "Comment")
"""How the kinds of statements begin that change the schema, or who may do what."""
NOTHING = "DO 'BEGIN END'"
SWITCHES = {f"AT_{how}Trig{which}" for how in ("Enable", "Disable") for which in ("All", "User")}
"""Triggers on or off: on DSQL there are none, here the rules are some."""


class Statement(NamedTuple):
    """One statement of a string.

    Attributes:
        text: what PostgreSQL can run in its place.
        refusal: what DSQL answers instead of running it; None where it runs.
        tag: the command tag that DSQL answers with, where PostgreSQL's would or might be another.
        kind: BEGIN, COMMIT, ROLLBACK, SET, COPY (from the client), CALL or DDL; else empty.
        changes: the tables whose rows it changes, as SQL names them.
        locks: the tables whose rows it may lock.

    """

    text: str
    refusal: Refusal | None = None
    tag: str = ""
    kind: str = ""
    changes: tuple[str, ...] = ()
    locks: tuple[str, ...] = ()

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
                    refusal = Refusal("42601", error.message) if places else None
                    return [Statement(sql, refusal)]
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
    end = start + parsed["stmt_len"] if "stmt_len" in parsed else len(raw)
    text = raw[start:end].decode()
    is_async = any(start <= place < end for place in async_at)
    ((kind, node),) = parsed["stmt"].items()
    if is_async and kind not in {"IndexStmt", "AlterTableStmt"}:
        return Statement(text, Refusal("42601", 'syntax error at or near "ASYNC"'))
    refusal = refuse(kind, node, raw, is_async=is_async) or _first_in_body(kind, node)
    if refusal:
        return Statement(text, refusal)
    if kind == "TransactionStmt" and node["kind"] == "TRANS_STMT_COMMIT":
        return Statement(text, None, COMMIT, COMMIT)
    if is_async:
        job, tag = ("INDEX_BUILD", "CREATE INDEX") if kind == "IndexStmt" else ("VALIDATE", ALTER)
        return Statement(
            f"SELECT dsql_rules.run_job('{job}', {_quoted(text)}) AS job_id", None, tag, "DDL"
        )
    if kind == "AlterTableStmt":
        commands = [one["AlterTableCmd"] for one in node["cmds"]]
        if all(one["subtype"] in SWITCHES for one in commands):
            return Statement(NOTHING, None, ALTER)
        dropped = [one["name"] for one in commands if one["subtype"] == "AT_DropColumn"]
        if dropped:
            table = _name(node["relation"])
            given = ", ".join(_quoted(one) for one in (table, json.dumps(dropped), text))
            return Statement(f"CALL dsql_rules.drop_columns({given})", None, ALTER, "DDL")
    found = list(nodes({kind: node}))
    changes = {_name(one["relation"]) for what, one in found if what in CHANGES}
    locks = {_name(one) for what, one in found if what == "RangeVar"}
    if not any(what == "LockingClause" for what, _ in found):
        locks = set()
    if kind == "CopyStmt" and node.get("is_from"):
        changes = {_name(node["relation"])}
    return Statement(text, None, "", _kind(kind, node), tuple(changes), tuple(locks))


def _kind(kind: str, node: Node) -> str:
    match kind:
        case "TransactionStmt":
            return str(node["kind"]).removeprefix("TRANS_STMT_").replace("START", "BEGIN")
        case "VariableSetStmt":
            return "SET"
        case "CopyStmt" if node.get("is_from"):
            return "COPY"
        case "CallStmt":
            return "CALL"
    return "DDL" if kind.startswith(DEFINES) else ""


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
        found = [one for _, one in nodes(pgparse.parse(sql)) if "schemaname" in one]
    except (pgparse.PGQueryError, RecursionError):
        return sql
    raw = sql.encode()
    places = {
        one["location"]: one["schemaname"]
        for one in found
        if (one["schemaname"], one.get("relname")) in shadows
    }
    for place, schema in sorted(places.items(), reverse=True):
        quoted = '"{}"'.format(schema.replace('"', '""')) if raw[place : place + 1] == b'"' else ""
        raw = raw[:place] + b"pg_temp" + raw[place + len((quoted or schema).encode()) :]
    return raw.decode()


def _quoted(text: str) -> str:
    return "'{}'".format(text.replace("'", "''"))


def _first_in_body(kind: str, node: Node) -> Refusal | None:
    """What is refused in the text of a function in SQL."""
    if kind != "CreateFunctionStmt":
        return None
    options = [one["DefElem"] for one in node.get("options", [])]
    bodies = [one["arg"]["List"]["items"] for one in options if one["defname"] == "as"]
    return next((check(body["String"]["sval"]) for items in bodies for body in items), None)


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
