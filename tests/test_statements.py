"""Statements are told apart as PostgreSQL does it, whatever stands in texts and comments."""

import contextlib
import sys

import psycopg2
import pytest
from hypothesis import given, settings, strategies as st
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

ONE = [
    " ; SELECT 1 ; -- the end; really\n ;",
    "SELECT 'it''s; so'",
    "SELECT E'it\\'s; so', e'\\\\'",
    'SELECT 1 AS "a;""b"',
    "SELECT $$;$$, $tag$; $$ ; $tag $ ; $tag$, $é$;$é$",
    "SELECT /* ; /* ; */ ; */ 1",
    "SELECT '\u00a0;'",
]
SEVERAL = [
    "SELECT 1; COMMIT",
    "SELECT '\\'; COMMIT; --'",
    "SELECT 1 AS é$$; COMMIT; --$$",
    "SELECT 1 /* /* */ */; COMMIT",
    'SELECT 1 AS "\\"; COMMIT; --"',
]


@pytest.fixture(scope="module")
def own(shared):
    with contextlib.closing(shared.database.connect()) as connection:
        yield connection


@pytest.mark.parametrize("text", ONE)
def test_a_semicolon_in_a_text_a_name_or_a_comment_ends_no_statement(shared, text):
    assert len(shared.database.query(text, read_only=True)) == 1


@pytest.mark.parametrize("text", SEVERAL)
def test_several_statements_are_seen_through_every_kind_of_quotation(shared, own, text):
    assert own.commands(text.encode()) == ["SelectStmt", "TRANS_STMT_COMMIT"]
    with pytest.raises(ValueError, match="one statement"):
        shared.database.query(text, read_only=True)


def test_where_backslashes_count_in_all_texts_whatever_might_be_several_is_refused(shared):
    text = "SELECT '\\''; DELETE FROM t; --'"
    with shared.database.connection() as connection, connection.cursor() as cursor:
        assert connection.commands(text.encode()) == ["SelectStmt"]
        cursor.execute("SET standard_conforming_strings = off")
        assert connection.commands(text.encode()) is None


def test_without_the_parser_whatever_might_be_several_is_refused(shared, monkeypatch):
    monkeypatch.setitem(sys.modules, "pgparse", None)  # as on a Mac with Intel's processor
    query = shared.database.query
    assert query("SELECT 'update', 'london';", read_only=True).rows == [("update", "london")]
    refused = ["SELECT 1; COMMIT", "SELECT ';'", "/* x */ DO $$BEGIN COMMIT; END$$"]
    for text in (*refused, "CALL f()", 'CALL"f"()', "/**/CALL/**/f()"):
        with pytest.raises(ValueError, match="read_only"):
            query(text, read_only=True)


PIECES = [
    *("'", "''", '"', "$$", "$a$", "E'", "e'", "\\", "--", "\n", "/*", "*/", ";", " "),
    *("a", "1", "$1", "é", "\u00a0", "U&'", "-", "+", "*", "/", "$", "(", ")", ","),
    *(";COMMIT", ";COMMIT;", "; COMMIT --", "; COMMIT /*", "*/ --", "'--", '"--', "$$--"),
]


@settings(max_examples=300, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=12))
def test_a_commit_that_the_server_runs_is_never_overlooked(own, pieces):
    text = "SELECT 1 AS x " + "".join(pieces)
    with own.cursor() as cursor:
        cursor.execute("BEGIN")
        # A string is parsed as a whole before anything of it runs.
        with contextlib.suppress(psycopg2.Error):
            cursor.execute(text)
        committed = own.get_transaction_status() == TRANSACTION_STATUS_IDLE
        cursor.execute("ROLLBACK")
    found = own.commands(text.encode())
    assert found is None or ("TRANS_STMT_COMMIT" in found[1:]) >= committed
