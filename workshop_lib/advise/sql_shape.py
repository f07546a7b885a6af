"""What the text of a statement tells of caching its answer, by PostgreSQL's parser."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import pgparse

from workshop_lib.dsql.parse_tree import MAX_PARSED, Node, nodes

Found = defaultdict[str, list[Node]]
"""All structures of a statement, by the names that they stand under."""
WRITES = {"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"}
FUNCTIONS = {
    "it has side effects, so it must reach the database": (
        *("nextval", "setval", "set_config", "setseed", "pg_notify", "pg_sleep", "dblink_exec"),
        *("pg_cancel_backend", "pg_terminate_backend", "lo_create", "lo_import", "lo_unlink"),
    ),
    "its answer should differ each time": (
        *("random", "random_normal", "gen_random_uuid", "gen_random_bytes", "uuidv4", "uuidv7"),
        *("uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4"),
    ),
    "its answer depends on who asks: make that a parameter first": (
        *("current_setting", "pg_backend_pid", "inet_client_addr"),
    ),
}
"""Functions whose answer cannot be cached, by why."""
CLOCK = {"now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday"}
COMPARISONS = {"<", "<=", ">", ">=", "BETWEEN", "NOT BETWEEN", "~~", "~~*", "~", "~*", "@@"}
"""Operators, LIKE among them, whose parameter can be another one in every call."""
LISTS = {"AEXPR_IN", "AEXPR_OP_ANY"}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a statement's text tells.

    Attributes:
        text: on one line, without values.
        leave: why its answer cannot be cached; empty if it can.
        doubt: what to find out before it is cached; empty if nothing.
        parameters: whether it has any. Without, one entry answers every call.
        reads, changes: names of tables, without their schemas.

    """

    text: str
    leave: str
    doubt: str = ""
    parameters: bool = False
    reads: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()


def shape(query: str) -> Shape:
    """What a statement's text tells, by PostgreSQL's parser.

    >>> shape("SELECT * FROM users WHERE id = $1 FOR UPDATE").leave
    'it locks rows, so it must reach the database'
    """
    statement = parse_one(query)
    if statement is None:
        shown = _on_one_line(query.partition("'")[0])  # what may be a value stays hidden
        return Shape(shown, "it cannot be parsed as one statement, so nothing is known of it")
    found: Found = defaultdict(list)
    for what, node in nodes([statement]):
        found[what].append(node)
    changes = {node["relation"]["relname"] for kind in WRITES for node in found[kind]}
    named = {one["ctename"] for one in found["CommonTableExpr"]}
    return Shape(
        _on_one_line(str(pgparse.normalize(query))),
        _why_not(statement, found),
        _doubt(found),
        _has_parameter(statement),
        frozenset({one["relname"] for one in found["RangeVar"]} - changes - named),
        frozenset(changes),
    )


def parse_one(query: str) -> Node | None:
    """The tree of a statement, under the name of its kind; None if it is not one, or too deep."""
    if len(query.encode()) > MAX_PARSED:
        return None
    try:
        (parsed,) = pgparse.parse(query)
    except (pgparse.PGQueryError, RecursionError, ValueError):
        return None
    return dict(parsed["stmt"])


def _on_one_line(text: str) -> str:
    """With nothing in it that moves a terminal's cursor."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _why_not(statement: Node, found: Found) -> str:
    """Why its answer cannot be cached; empty if it can."""
    (kind,) = statement
    calls, values = _functions(found)
    tables = found["RangeVar"]
    if found["intoClause"] or any(found[writing] for writing in WRITES):
        return "it writes, so it must reach the database"
    if kind != "SelectStmt":
        return f"it is no query ({kind.removesuffix('Stmt')})"
    if found["LockingClause"]:
        return "it locks rows, so it must reach the database"
    for why, functions in FUNCTIONS.items():
        if called := sorted(calls.intersection(functions)):
            return f"{why} ({called[0]}())"
    if "USER" in values or "ROLE" in values:
        return "its answer depends on who asks: make that a parameter first (CURRENT_USER)"
    if not tables:
        return "it reads no table"
    return "it reads the catalogue, as drivers and tools do" if _is_catalogue(tables) else ""


def _functions(found: Found) -> tuple[set[str], str]:
    """The functions that it calls, without their schemas; and values such as CURRENT_DATE."""
    calls = {one["funcname"][-1]["String"]["sval"] for one in found["FuncCall"]}
    return calls, " ".join(one["op"] for one in found["SQLValueFunction"])


def _is_catalogue(tables: Iterable[Node]) -> bool:
    schemas = {"pg_catalog", "information_schema"}
    return all(
        one.get("schemaname") in schemas or one["relname"].startswith("pg_") for one in tables
    )


def _doubt(found: Found) -> str:
    """What to find out before it is cached; empty if nothing."""
    calls, values = _functions(found)
    if calls & CLOCK or "TIME" in values or "DATE" in values:
        return "it asks for the time: a cached answer has the time at which it was loaded"
    compared = found["limitOffset"] + [
        one for one in found["A_Expr"]
        if one["name"][-1]["String"]["sval"] in COMPARISONS or one["kind"] in LISTS
    ]  # fmt: skip
    if any(map(_has_parameter, compared)):
        return (
            "each call may be unique, by a parameter that is compared by <, > or LIKE, or is a "
            "list, or an OFFSET: count the different values"
        )
    return ""


def _has_parameter(tree: Node) -> bool:
    return any(what == "ParamRef" for what, _ in nodes([tree]))
