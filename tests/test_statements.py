"""Statements are told apart as PostgreSQL does it, whatever stands in texts and comments."""

import contextlib

import psycopg2
import pytest
from hypothesis import given, settings, strategies as st
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from workshop_lib.statements import check_read_only, first_words

ONE = [
    "SELECT 1",
    "SELECT 1;",
    " ; SELECT 1 ; -- the end; really\n ;",
    "SELECT ';'",
    "SELECT 'it''s; so'",
    "SELECT 'a\\';",  # it has no end: the server will say so
    "SELECT E'it\\'s; so', e'\\\\'",
    "SELECT E'a'\n'b\\'; c'",
    "SELECT E'a' -- why;\n  -- not\n'b\\'; c'",
    'SELECT 1 AS "a;""b"',
    "SELECT $$;$$, $tag$; $$ ; $tag $ ; $tag$, $é$;$é$",
    "SELECT /* ; /* ; */ ; */ 1",
    "SELECT 1 -- ;",
    "SELECT U&';', B'1', N';'",
    "SELECT 2 */* ; */ 3",
    "SELECT '\u00a0;'",
]
SEVERAL = [
    ("SELECT 1; COMMIT", ["select", "commit"]),
    ("SELECT '\\'; COMMIT; --'", ["select", "commit"]),
    ("SELECT E'\\\\'; COMMIT; --'", ["select", "commit"]),
    ("SELECT 'a' 'b\\'; COMMIT; --'", ["select", "commit"]),
    ("SELECT 1 AS a$$; COMMIT; --$$", ["select", "commit"]),
    ("SELECT 1 AS é$$; COMMIT; --$$", ["select", "commit"]),
    ("SELECT 1 AS \u00a0$$; COMMIT; --$$", ["select", "commit"]),
    ("SELECT 1 AS fooE'\\'; COMMIT; --'", ["select", "commit"]),
    ("SELECT $a$ $b$ $a$; COMMIT -- $b$", ["select", "commit"]),
    ("SELECT 1 /* /* */ */; COMMIT", ["select", "commit"]),
    ("SELECT 1 -- no end\n; COMMIT", ["select", "commit"]),
    ('SELECT 1 AS "\\"; COMMIT; --"', ["select", "commit"]),
    ("(SELECT 1); $1", ["", ""]),
    ("", []),
    ("-- nothing", []),
    ("/* nothing", []),
]


@pytest.mark.parametrize("text", ONE)
def test_a_semicolon_in_a_text_a_name_or_a_comment_ends_no_statement(text):
    assert len(list(first_words(text))) == 1
    check_read_only(text)


@pytest.mark.parametrize(("text", "words"), SEVERAL)
def test_several_statements_are_seen_through_every_kind_of_quotation(text, words):
    assert list(first_words(text)) == words
    if len(words) > 1:
        with pytest.raises(ValueError, match="several statements"):
            check_read_only(text)


def test_backslashes_can_count_in_all_texts():
    text = "SELECT 'a\\'; COMMIT; --'"
    assert list(first_words(text)) == ["select", "commit"]
    assert list(first_words(text, backslashes=True)) == ["select"]


PIECES = [
    *("'", "''", '"', "$$", "$a$", "E'", "e'", "\\", "--", "\n", "/*", "*/", ";", " "),
    *("a", "1", "$1", "é", "\u00a0", "U&'", "-", "+", "*", "/", "$", "(", ")", ","),
    *(";COMMIT", ";COMMIT;", "; COMMIT --", "; COMMIT /*", "*/ --", "'--", '"--', "$$--"),
]


@pytest.fixture(scope="module")
def own(shared):
    connection = shared.connect()
    yield connection
    connection.close()


@settings(max_examples=500, deadline=None)
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
    assert ("commit" in list(first_words(text))[1:]) >= committed
