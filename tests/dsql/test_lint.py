"""AWS's linter: offered to the learner, and content with every statement of the workshop."""

import re

import pytest

from workshop_lib import WorkshopError
from workshop_lib.dataset import schema
from workshop_lib.dsql import linter
from workshop_lib.dsql.linter import lint


def with_values(statement: str) -> str:
    """The statement as the database gets it: literals in place of parameters."""
    return re.sub(r"%\(\w+\)s", "'1'", statement)


def test_tables_and_queries_are_statements_that_dsql_accepts():
    queries = [text for name, text in vars(schema).items() if name.endswith("_QUERY")]
    assert (len(schema.TABLES), len(queries)) == (8, 3)
    statements = [*(table.ddl for table in schema.TABLES.values()), *map(with_values, queries)]
    found = lint(";\n".join(statements))
    assert found == []
    assert repr(found) == "dsql-lint finds nothing to object to."


def test_it_names_line_rule_and_cure(shared):
    found = shared.database.lint(
        "SELECT 1;\nTRUNCATE t;\nCREATE TABLE a (id SERIAL);\nCREATE INDEX i ON t (a)"
    )
    rules = [("truncate", 2), ("serial_type", 3), ("index_async", 4)]
    assert [(f.rule, f.line) for f in found] == rules
    assert "DELETE" in found[0].suggestion
    assert "TRUNCATE is not supported" in repr(found)
    assert [f.rule for f in lint(f"{with_values(schema.COMPLEX_QUERY)} GROUP")] == ["parse_error"]


def test_a_linter_that_is_not_there_is_a_clear_error(shared, monkeypatch, tmp_path):
    monkeypatch.setattr(linter, "PROGRAM", tmp_path / "nothing")
    with pytest.raises(WorkshopError, match="dsql-lint could not be run"):
        shared.database.lint("SELECT 1")
