"""What Aurora DSQL allows: one list over PostgreSQL's parse tree; whatever is not on it is refused.

The tree is libpg_query's: dicts that are named like the structures of PostgreSQL's source. The
lists are in allowed.toml. Texts and codes are the service's where they are known, as answered in
autumn 2026; docs/dsql-rules.md says which are ours.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

Node = dict[str, Any]
"""A structure of the parse tree; what is empty, 0 or false is left out of it."""

LISTS = tomllib.loads(Path(__file__).with_name("allowed.toml").read_text())
SHOWN: dict[str, str] = LISTS["shown"]
GEOMETRY, TEXT_SEARCH, NO_COLUMN, SERIAL = (
    frozenset(LISTS["types"][name].split())
    for name in ("geometry", "text_search", "no_column", "serial")
)
SETTABLE, ROLE_OPTIONS, DROPPABLE, RENAMABLE, SEARCH_FUNCTIONS, PLAIN = (
    frozenset(LISTS["words"][name].split())
    for name in (
        "settable", "role_options", "droppable", "renamable", "search_functions", "statements",
    )
)  # fmt: skip
ALTERATIONS: dict[str, str] = LISTS["alterations"]
TEXTS: dict[str, str] = LISTS["texts"]
TABLE_PARTS: dict[str, str] = LISTS["table_parts"]
UTF8 = frozenset({"utf8", "utf-8", "unicode", "sql_ascii"})
"""What clients call the encoding that the service knows; the last one leaves bytes as they are."""

MAX_COLUMNS, MAX_KEY_COLUMNS = 255, 8
CACHE_AT_LEAST = 65_536
CACHE_ADVICE = "please define CACHE greater than or equal to 65536 or equal to 1"


class Refusal(NamedTuple):
    """Why Aurora DSQL refuses a statement: SQLSTATE and text."""

    code: str
    message: str


def not_supported(message: str) -> Refusal:
    """The refusal that most are."""
    return Refusal("0A000", message)


def refuse(kind: str, statement: Node, source: bytes, *, is_async: bool = False) -> Refusal | None:
    """What the service would answer to a statement, as far as its text shows; None: run it.

    Args:
        kind: the structure's name, such as "SelectStmt".
        statement: what is in it.
        source: the whole string, without ASYNC.
        is_async: whether ASYNC was there.

    """
    if kind not in RULES:
        return not_supported(TEXTS.get(kind, f"unsupported statement: {kind.removesuffix('Stmt')}"))
    if kind in {"IndexStmt", "AlterTableStmt"}:
        statement = {**statement, "async": is_async, "source": source}
    rule = RULES[kind]
    found = rule(statement) if rule else None
    return found or _refuse_within(statement)


def _refuse_within(tree: Node) -> Refusal | None:
    """What is refused wherever it stands in a statement."""
    for kind, node in nodes(tree):
        match kind:
            case "LockingClause" if node["strength"] in {"LCS_FORSHARE", "LCS_FORNOKEYUPDATE"}:
                return not_supported(
                    "locking clauses other than FOR UPDATE/FOR KEY SHARE are not supported"
                )
            case "RangeTableSample":
                return not_supported("TABLESAMPLE clause not supported")
            case "FuncCall" if found := _function(node):
                return found
            case "TypeCast" if (name := type_name(node["typeName"])) in GEOMETRY | TEXT_SEARCH:
                return not_supported(f"datatype {name} not supported")
            case "intoClause":
                return not_supported("unsupported statement: CreateTableAs")
    return None


def nodes(tree: object) -> Iterator[tuple[str, Node]]:
    """All structures in a tree with the names that they stand under. Not recursive: it is deep."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, dict):
            for name, value in node.items():
                if isinstance(value, dict):
                    yield name, value
                waiting.append(value)


def _function(call: Node) -> Refusal | None:
    name, arguments = _last(call["funcname"]), call.get("args", [])
    if name in GEOMETRY:
        return not_supported(f"datatype {name} not supported")
    if name in SEARCH_FUNCTIONS:
        named = _text(arguments[0]) if len(arguments) > 1 else ""
        return Refusal("42704", f'text search configuration "{named or "english"}" does not exist')
    if name == "set_config":
        return may_set(_text(arguments[0]) if arguments else "")
    if name.startswith(("pg_advisory_", "pg_try_advisory_")):
        return not_supported(f"function {name} not supported")
    return None


def may_set(name: str, value: str = "") -> Refusal | None:
    """Whether a session may set a parameter, and to this value."""
    lower = name.lower()
    if lower not in SETTABLE and not lower.startswith("enable_"):
        return not_supported(f'setting configuration parameter "{name}" not supported')
    if lower == "client_encoding" and value and value.strip("'").lower() not in UTF8:
        return Refusal("22023", f'invalid value for parameter "client_encoding": "{value}"')
    return None


# --- types, columns, sequences ---


def type_name(node: Node) -> str:
    """The inner name of a built-in type, such as int4; empty for one of another schema."""
    names = [name["String"]["sval"] for name in node.get("names", [])]
    return names[-1] if len(names) == 1 or names[:-1] == ["pg_catalog"] else ""


def _refuse_type(node: Node) -> Refusal | None:
    name = type_name(node)
    if name in SERIAL:
        return Refusal("42704", f'type "{name}" does not exist')
    if "arrayBounds" in node:
        return not_supported(f"datatype {SHOWN.get(name, name)}[] not supported")
    if name in NO_COLUMN:
        return not_supported(f"datatype {SHOWN.get(name, name)} not supported")
    return None


def _refuse_column(column: Node) -> Refusal | None:
    if "collClause" in column:
        return not_supported("COLLATE clause not supported for columns")
    for constraint in _each(column, "constraints", "Constraint"):
        if constraint["contype"] != "CONSTR_IDENTITY":
            continue
        if found := _refuse_cache(constraint.get("options", []), "identity column"):
            return found
        name = type_name(column["typeName"])
        if name != "int8":
            shown = SHOWN.get(name, name)
            return not_supported(
                f"datatype {shown} not supported, identity column type must be bigint"
            )
    return _refuse_type(column.get("typeName", {}))


def _refuse_cache(options: list[Node], what: str, *, needed: bool = True) -> Refusal | None:
    given = _options(options)
    if "as" in given and (name := type_name(given["as"]["TypeName"])) != "int8":
        return not_supported(f"datatype {SHOWN.get(name, name)} not supported for {what}")
    if "cache" not in given:
        missing = f"{what} is not supported without an explicit cache size. {CACHE_ADVICE}"
        return not_supported(missing) if needed else None
    size = given["cache"].get("Integer", {}).get("ival", 0) or CACHE_AT_LEAST  # a large one: Float
    if size == 1 or size >= CACHE_AT_LEAST:
        return None
    return Refusal("22023", f"CACHE ({size}) is not supported. {CACHE_ADVICE}")


# --- statements ---


def _temporary(relation: Node, what: str) -> Refusal | None:
    kind = {"t": "TEMPORARY or TEMP table", "u": "UNLOGGED table"}.get(relation["relpersistence"])
    return not_supported(f"{kind} not supported for {what}") if kind else None


def _create_table(statement: Node) -> Refusal | None:
    if found := _temporary(statement["relation"], "CREATE TABLE"):
        return found
    for part, name in TABLE_PARTS.items():
        if part in statement:
            return not_supported(f"{name} not supported for CREATE TABLE")
    if statement["oncommit"] != "ONCOMMIT_NOOP":
        return not_supported("ON COMMIT not supported for CREATE TABLE")
    columns = list(_each(statement, "tableElts", "ColumnDef"))
    if len(columns) > MAX_COLUMNS:
        return Refusal("54011", f"tables can have at most {MAX_COLUMNS} columns")
    for constraint in _each(statement, "tableElts", "Constraint"):
        if constraint["contype"] == "CONSTR_EXCLUSION":
            return not_supported("EXCLUDE not supported for CREATE TABLE")
        if len(constraint.get("keys", [])) > MAX_KEY_COLUMNS:
            return _TOO_MANY_KEYS
    return _first(map(_refuse_column, columns))


_TOO_MANY_KEYS = Refusal(
    "54011", f"more than {MAX_KEY_COLUMNS} column keys in an index are not supported"
)


def _alter_table(statement: Node) -> Refusal | None:
    if statement["objtype"] == "OBJECT_TYPE":
        return not_supported("ALTER TYPE not supported")
    return _first(
        _alteration(command, is_async=statement["async"])
        for command in _each(statement, "cmds", "AlterTableCmd")
    )


def _alteration(command: Node, *, is_async: bool) -> Refusal | None:
    kind = command["subtype"]
    text = ALTERATIONS.get(kind, kind.removeprefix("AT_"))
    column = command.get("def", {}).get("ColumnDef", {})
    if kind == "AT_AddColumn":
        if type_name(column["typeName"]) in SERIAL:
            return _refuse_type(column["typeName"])
        if "constraints" in column:
            return not_supported("ALTER TABLE ADD COLUMN with constraint not supported")
        return _refuse_type(column["typeName"])
    if kind == "AT_AddConstraint":
        constraint = command["def"]["Constraint"]
        adopts = "indexname" in constraint and constraint["contype"] == "CONSTR_UNIQUE"
        if not constraint.get("skip_validation") and not adopts:
            text = "ADD CONSTRAINT"
    if kind == "AT_AddIdentity":
        return _refuse_cache(command["def"]["Constraint"].get("options", []), "identity column")
    if kind == "AT_ValidateConstraint" and not is_async:
        text = "VALIDATE CONSTRAINT"
    return not_supported(f"unsupported ALTER TABLE {text} statement") if text else None


def _create_index(statement: Node) -> Refusal | None:
    if not statement["async"] or statement.get("concurrent"):
        return not_supported("unsupported mode. please use CREATE INDEX ASYNC.")
    keys = list(_each(statement, "indexParams", "IndexElem"))
    if len(keys) > MAX_KEY_COLUMNS:
        return _TOO_MANY_KEYS
    if any(key["ordering"] != "SORTBY_DEFAULT" for key in keys):
        return not_supported("specifying sort order not supported for index keys")
    # The tree does not tell a method that was written from the usual one.
    after = statement["source"][statement["relation"]["location"] :].decode()
    if "using" in after.partition("(")[0].lower().split():
        return not_supported(f"index access method {statement['accessMethod']} not supported")
    return None


def _transaction(statement: Node) -> Refusal | None:
    kind = statement["kind"].removeprefix("TRANS_STMT_").replace("_", " ")
    if kind not in {"BEGIN", "START", "COMMIT", "ROLLBACK"}:
        return not_supported(f"unsupported transaction statement: {kind}")
    return _refuse_isolation(statement.get("options", []))


def _refuse_isolation(options: list[Node]) -> Refusal | None:
    level = _text(_options(options).get("transaction_isolation", {})).upper()
    if level in {"", "REPEATABLE READ"}:
        return None
    return not_supported(f"Unsupported isolation level: {level}")


def _set(statement: Node) -> Refusal | None:
    kind, name = statement["kind"], statement.get("name", "")
    if kind in {"VAR_RESET", "VAR_RESET_ALL"} or (
        name == "session_authorization" and kind == "VAR_SET_DEFAULT"
    ):
        return None
    arguments = statement.get("args", [])
    if kind == "VAR_SET_MULTI":
        if found := _refuse_isolation(arguments):
            return found
        return None if name == "SESSION CHARACTERISTICS" else may_set(name)
    return may_set(name, _text(arguments[0]) if arguments else "")


def _create_function(statement: Node) -> Refusal | None:
    what = "CREATE PROCEDURE" if statement.get("is_procedure") else "CREATE FUNCTION"
    given = _options(statement.get("options", []))
    language = _text(given.get("language", {})).lower() or "sql"
    if language != "sql":
        return not_supported(f"{what} with language {language} not supported")
    if what == "CREATE PROCEDURE":
        return not_supported(f"{what} not supported")
    return _first(
        _set(option["arg"]["VariableSetStmt"])
        for option in _each(statement, "options", "DefElem")
        if option["defname"] == "set"
    )


def _update(statement: Node) -> Refusal | None:
    """The view pg_settings is another way to SET."""
    setting = statement["relation"]["relname"] == "pg_settings"
    return not_supported("unsupported statement: Update of pg_settings") if setting else None


def _role(statement: Node) -> Refusal | None:
    given = _options(statement.get("options", []))
    refused = sorted(given.keys() - ROLE_OPTIONS)
    return not_supported(f"unsupported role option: {refused[0].upper()}") if refused else None


def _drop(statement: Node) -> Refusal | None:
    kind = statement["removeType"].removeprefix("OBJECT_")
    if kind not in DROPPABLE or (kind == "TRIGGER" and not statement.get("missing_ok")):
        return not_supported("unsupported object in DROP statement")
    return None


def _rename(statement: Node) -> Refusal | None:
    kind = statement["renameType"].removeprefix("OBJECT_")
    return None if kind in RENAMABLE else not_supported("unsupported object in RENAME statement")


def _copy(statement: Node) -> Refusal | None:
    to_file = "filename" in statement or statement.get("is_program")
    return not_supported("COPY from or to a file is not supported") if to_file else None


def _explain(statement: Node) -> Refusal | None:
    return _inner(statement["query"])


def _create_schema(statement: Node) -> Refusal | None:
    return _first(map(_inner, statement.get("schemaElts", [])))


def _inner(node: Node) -> Refusal | None:
    ((kind, statement),) = node.items()
    return refuse(kind, statement, b"")


def _when(wrong: Callable[[Node], object], message: str) -> Callable[[Node], Refusal | None]:
    return lambda statement: not_supported(message) if wrong(statement) else None


RULES: dict[str, Callable[[Node], Refusal | None] | None] = {
    **dict.fromkeys(PLAIN),
    "UpdateStmt": _update,
    "TransactionStmt": _transaction,
    "VariableSetStmt": _set,
    "ExplainStmt": _explain,
    "CopyStmt": _copy,
    "CreateStmt": _create_table,
    "AlterTableStmt": _alter_table,
    "IndexStmt": _create_index,
    "ViewStmt": lambda s: _temporary(s["view"], "CREATE VIEW"),
    "CreateSchemaStmt": _create_schema,
    "CreateDomainStmt": lambda s: _refuse_type(s["typeName"]),
    "CreateSeqStmt": lambda s: (
        _temporary(s["sequence"], "CREATE SEQUENCE")
        or _refuse_cache(s.get("options", []), "CREATE SEQUENCE")
    ),
    "AlterSeqStmt": lambda s: _refuse_cache(s.get("options", []), "ALTER SEQUENCE", needed=False),
    "CreateFunctionStmt": _create_function,
    "CreateRoleStmt": _role,
    "AlterRoleStmt": _role,
    "AlterRoleSetStmt": _when(
        lambda s: "RESET" not in s["setstmt"]["kind"], "unsupported statement: AlterRoleSet"
    ),
    "DropStmt": _drop,
    "RenameStmt": _rename,
    "VacuumStmt": _when(lambda s: s.get("is_vacuumcmd"), "unsupported VACUUM statement"),
    "DeallocateStmt": _when(lambda s: "name" in s, "unsupported statement: Deallocate"),
}
"""What may run, with what is looked at in it."""


# --- reading the tree ---


def _each(node: Node, part: str, kind: str) -> Iterator[Node]:
    return (one[kind] for one in node.get(part, []) if kind in one)


def _options(options: list[Node]) -> dict[str, Node]:
    return {one["DefElem"]["defname"]: one["DefElem"].get("arg", {}) for one in options}


def _last(names: list[Node]) -> str:
    return str(names[-1]["String"]["sval"])


def _text(node: Node) -> str:
    """A text that stands there as it is; empty for anything else."""
    constant = node.get("A_Const", node)
    return str(constant.get("String", constant.get("sval", {})).get("sval", ""))


def _first(found: Iterator[Refusal | None]) -> Refusal | None:
    return next(filter(None, found), None)
