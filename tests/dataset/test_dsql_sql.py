"""Every statement of the workshop is one that Aurora DSQL accepts, as AWS's own linter sees it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workshop_lib.dataset import schema

QUERIES = {name: text for name, text in vars(schema).items() if name.endswith("_QUERY")}
DDL = {name: table.ddl for name, table in schema.TABLES.items()}


def complaints(statement: str) -> list[str]:
    """The names of the rules that a statement breaks."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dsql-lint")), "--format", "json", "-"],
        input=f"{statement.strip()};\n",
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


def test_the_tables_and_queries_of_the_workshop_are_all_here():
    assert set(DDL) == {
        "planet", "users1", "users", "orders", "type", "transactions", "business_events",
        "workshop_loaded",
    }  # fmt: skip
    assert set(QUERIES) == {"SIMPLE_QUERY", "COMPLEX_QUERY", "REPORT_QUERY"}


@pytest.mark.parametrize("name", DDL)
def test_a_table_is_created_by_a_statement_that_dsql_accepts(name):
    assert complaints(DDL[name]) == []


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_is_one_that_dsql_accepts(name):
    assert complaints(with_values(QUERIES[name])) == []


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("CREATE TABLE t (id SERIAL PRIMARY KEY)", "serial_type"),
        ("TRUNCATE t", "truncate"),
        ("CREATE INDEX i ON t (a)", "index_async"),
        ("CREATE TABLE t (id INT", "parse_error"),
        (f"{with_values(schema.COMPLEX_QUERY)} GROUP", "parse_error"),
    ],
)
def test_the_linter_does_report_what_dsql_refuses(statement, rule):
    assert complaints(statement) == [rule]
