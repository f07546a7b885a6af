"""What the text of a statement tells of caching its answer, by PostgreSQL's parser."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pgparse

from workshop_lib.dsql.parse_tree import MAX_PARSED, Node, nodes

Found = list[tuple[str, Node]]
"""All structures of a statement, with the names that they stand under."""
WRITES = {"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt"}
EFFECTS = {
    *("nextval", "setval", "set_config", "setseed", "pg_notify", "pg_sleep", "dblink_exec"),
    *("pg_cancel_backend", "pg_terminate_backend", "lo_create", "lo_import", "lo_unlink"),
}
CHANCE = {
    *("random", "random_normal", "gen_random_uuid", "gen_random_bytes", "uuidv4", "uuidv7"),
    *("uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4"),
}
ASKER = {"current_setting", "pg_backend_pid", "inet_client_addr"}
CLOCK = {"now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday"}
LOCKS = ("pg_advisory_", "pg_try_advisory_")
KINDS = {
    "CallStmt": "calls a procedure, which may write",
    "DoStmt": "runs code, which may write",
    "TransactionStmt": "begins or ends a transaction",
    "CopyStmt": "copies rows out, as an export does",
    "DeclareCursorStmt": "reads through a cursor, in parts",
}
UNIQUE = {
    "range": "It compares a parameter by < or >. If that is the current time or the last row seen, "
    "every call is unique: round it, for example to the minute, or leave the statement.",
    "search": "It searches for a text: count how many different ones people type.",
    "list": "It takes a list of values, and each list is an entry of its own: look its members up "
    "one by one instead.",
    "page": "It skips to a page (OFFSET): each page is an entry of its own.",
}
"""Parameters that can make every call unique."""
OPERATORS = {
    **dict.fromkeys(("<", "<=", ">", ">=", "BETWEEN", "NOT BETWEEN"), "range"),
    **dict.fromkeys(("~~", "~~*", "~", "~*", "@@"), "search"),
}
LISTS = {"AEXPR_IN", "AEXPR_OP_ANY"}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a statement's text tells.

    Attributes:
        text: on one line, without values.
        leave: why its answer cannot be cached; empty if it can.
        parameters: whether it has any. Without, one entry answers every call.
        reads, changes: names of tables, without their schemas.
        unique: whether its parameters can make every call unique.
        notes: what to look at before caching it.

    """

    text: str
    leave: str
    parameters: bool = False
    reads: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()
    unique: bool = False
    notes: tuple[str, ...] = ()


def shape(query: str) -> Shape:
    """What a statement's text tells, by PostgreSQL's parser.

    >>> shape("SELECT * FROM users WHERE id = $1 FOR UPDATE").leave
    'it locks rows, so it must reach the database'
    """
    statement = parse_one(query)
    if statement is None:
        shown = _on_one_line(query.partition("'")[0])  # what may be a value stays hidden
        return Shape(shown, "it cannot be parsed as one statement, so nothing is known of it")
    found = list(nodes([statement]))
    changes = {node["relation"]["relname"] for what, node in found if what in WRITES}
    changes |= {one["relation"]["relname"] for one in _all(found, "CopyStmt") if "is_from" in one}
    tables = {one["relname"] for one in _all(found, "RangeVar")}
    unique = _unique(found)
    return Shape(
        _on_one_line(str(pgparse.normalize(query))),
        _why_not(statement, found, changes),
        any(_all(found, "ParamRef")),
        frozenset(tables - changes - {one["ctename"] for one in _all(found, "CommonTableExpr")}),
        frozenset(changes),
        bool(unique),
        (*unique, *_notes(found)),
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


def _all(found: Found, kind: str) -> Iterator[Node]:
    return (node for what, node in found if what == kind)


def _calls(found: Found) -> list[list[str]]:
    """The names of all functions it calls, each with the schema before it if it is named."""
    return [[one["String"]["sval"] for one in c["funcname"]] for c in _all(found, "FuncCall")]


def _why_not(statement: Node, found: Found, changes: set[str]) -> str:
    """Why its answer cannot be cached; empty if it can."""
    (kind,) = statement
    calls = {name[-1] for name in _calls(found)}
    asked = " ".join(one["op"] for one in _all(found, "SQLValueFunction"))
    tables = list(_all(found, "RangeVar"))
    if changes or any(_all(found, "intoClause")):
        return "it writes, so it must reach the database"
    if kind != "SelectStmt":
        return "it " + KINDS.get(kind, f"is no query ({kind.removesuffix('Stmt')})")
    if any(_all(found, "LockingClause")) or any(name.startswith(LOCKS) for name in calls):
        return "it locks rows, so it must reach the database"
    if effects := calls & EFFECTS:
        return f"it has side effects ({_named(effects)}), so it must reach the database"
    if chance := calls & CHANCE:
        return f"its answer should differ each time ({_named(chance)})"
    if (askers := calls & ASKER) or "USER" in asked or "ROLE" in asked:
        by = _named(askers) or "CURRENT_USER"
        return f"its answer depends on who asks ({by}): make that a parameter first"
    if tables and all(map(_is_catalogue, tables)):
        return "it reads the catalogue, as drivers and tools do"
    return "" if tables or calls else "it reads no table"


def _is_catalogue(table: Node) -> bool:
    schemas = {"pg_catalog", "information_schema"}
    return table.get("schemaname") in schemas or table["relname"].startswith("pg_")


def _named(functions: Iterable[str]) -> str:
    return ", ".join(f"{name}()" for name in sorted(functions))


def _unique(found: Found) -> list[str]:
    """How its parameters can make every call unique."""
    compared = set()
    for one in _all(found, "A_Expr"):
        sides = [*_members(one.get("lexpr", {})), *_members(one.get("rexpr", {}))]
        name = one["name"][-1]["String"]["sval"]
        if name == "@@" or any(map(_is_parameter, sides)):
            compared.add("list" if one["kind"] in LISTS else OPERATORS.get(name, ""))
    if any("limitOffset" in node and _is_parameter(node["limitOffset"]) for _, node in found):
        compared.add("page")
    return [note for name, note in UNIQUE.items() if name in compared]


def _notes(found: Found) -> Iterator[str]:
    """What else to look at before caching it."""
    asked = " ".join(one["op"] for one in _all(found, "SQLValueFunction"))
    calls = _calls(found)
    if any(name[-1] in CLOCK for name in calls) or "TIME" in asked or "DATE" in asked:
        yield "It asks for the time: a cached answer has the time at which it was loaded."
    tables = any(_all(found, "RangeVar"))
    own = {".".join(name) for name in calls if (name[0] != "pg_catalog" and name[1:]) or not tables}
    if own:
        yield f"It calls {_named(own)}: whether that writes or varies is not in its text."


def _members(node: Node) -> list[Node]:
    return list(node["List"]["items"]) if "List" in node else [node]


def _is_parameter(node: Node) -> bool:
    while "TypeCast" in node:
        node = node["TypeCast"]["arg"]
    return "ParamRef" in node
