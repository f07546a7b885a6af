"""AWS's linter, offered to the learner."""

import pytest

from workshop_lib import WorkshopError
from workshop_lib.dsql import linter


def test_it_names_line_rule_and_cure(shared):
    found = shared.database.lint("SELECT 1;\nTRUNCATE t;\nCREATE TABLE a (id SERIAL);")
    assert [(f.rule, f.line) for f in found] == [("truncate", 2), ("serial_type", 3)]
    assert "DELETE" in found[0].suggestion
    assert "TRUNCATE is not supported" in repr(found)
    assert "<td>2</td>" in found._repr_html_()


def test_what_is_allowed_is_not_objected_to(shared):
    found = shared.database.lint("SELECT 1")
    assert found == []
    assert repr(found) == "dsql-lint finds nothing to object to."


def test_a_linter_that_is_not_there_is_a_clear_error(shared, monkeypatch, tmp_path):
    monkeypatch.setattr(linter, "PROGRAM", tmp_path / "nothing")
    with pytest.raises(WorkshopError, match="dsql-lint could not be run"):
        shared.database.lint("SELECT 1")
