"""Every statement of the workshop is one that Aurora DSQL accepts, as AWS's own linter sees it."""

import json
import re
import subprocess
import sys
from pathlib import Path

from workshop_lib.dataset import schema

QUERIES = {name: text for name, text in vars(schema).items() if name.endswith("_QUERY")}
DDL = {name: table.ddl for name, table in schema.TABLES.items()}


def complaints(*statements: str) -> list[str]:
    """The names of the rules that statements break."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dsql-lint")), "--format", "json", "-"],
        input="".join(f"{statement.strip()};\n" for statement in statements),
        capture_output=True,
        text=True,
        check=False,
    )
    (file,) = json.loads(done.stdout)["files"]
    assert file["error"] is None
    return [found["rule"] for found in file["diagnostics"]]


def with_values(statement: str) -> str:
    """The statement as the database gets it: literals in place of parameters."""
    return re.sub(r"%\(\w+\)s", "'1'", statement)


def test_tables_and_queries_are_statements_that_dsql_accepts():
    assert len(DDL) == 8
    assert set(QUERIES) == {"SIMPLE_QUERY", "COMPLEX_QUERY", "REPORT_QUERY"}
    assert complaints(*DDL.values(), *map(with_values, QUERIES.values())) == []


def test_the_linter_does_report_what_dsql_refuses():
    refused = {
        "CREATE TABLE t (id SERIAL PRIMARY KEY)": "serial_type",
        "TRUNCATE t": "truncate",
        "CREATE INDEX i ON t (a)": "index_async",
    }
    assert complaints(*refused) == list(refused.values())
    assert complaints(f"{with_values(schema.COMPLEX_QUERY)} GROUP") == ["parse_error"]
