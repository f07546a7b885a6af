"""Where one SQL statement ends and the next one begins, by PostgreSQL's lexical rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

# By what they are not: to compile a set with all of Unicode in it takes long.
_NAME = r"[^\x00-@\[-^`{-\x7f]"
_NAME_GOES_ON = r"[^\x00-#%-/:-@\[-^`{-\x7f]"
_TAG = rf"(?:{_NAME}[^\x00-/:-@\[-^`{{-\x7f]*+)?"
_PLAIN = r"'(?:[^']|'')*+(?:'|\Z)"
_ESCAPED = r"'(?:[^'\\]|\\.|'')*+(?:'|\Z)"
# A text goes on in the next line: 'a'⏎'b' is 'ab'. What E means holds for all of it.
_NEXT_LINE = r"(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:[ \t\f\v\n\r]|--[^\n\r]*+[\n\r])*+"
_BETWEEN = re.compile(r"(?:[ \t\n\r\f\v;]|--[^\n\r]*+)*+")
_WORD = re.compile(rf"{_NAME}{_NAME_GOES_ON}*+")


def _up_to_end(text: str) -> re.Pattern[str]:
    """What a statement goes on with, up to a semicolon or a comment that may hold others."""
    return re.compile(
        rf"""(?:
          [\x00-!#%&(-,.0-:<-@\[-^`{{-\x7f]++
        | [eE] {_ESCAPED} (?: {_NEXT_LINE} {_ESCAPED} )*+
        | {text}
        | {_NAME} {_NAME_GOES_ON}*+
        | " (?:[^"]|"")*+ (?:"|\Z)
        | \$ (?P<tag> {_TAG} ) \$ .*? (?: \$ (?P=tag) \$ | \Z )
        | --[^\n\r]*+
        | (?! /\* ) [^;]
        )*+""",
        re.VERBOSE | re.DOTALL,
    )


_REST = _up_to_end(_PLAIN)
_REST_WITH_BACKSLASHES = _up_to_end(_ESCAPED)
_COMMENT_ENDS = re.compile(r"/\*|\*/")
_END = " \t\n\r\f\v;"
MAY_END_TRANSACTIONS = {"do", "call"}
"""What runs procedures, which may end the transaction they run in and begin another one."""


def check_read_only(text: str, *, backslashes: bool = False) -> None:
    """Refuse what could leave a read-only transaction; what writes in it the database refuses.

    Raises:
        ValueError: there are several statements, or one that may end its transaction.

    """
    words = first_words(text, backslashes=backslashes)
    if next(words, "") in MAY_END_TRANSACTIONS:
        raise ValueError(
            "DO and CALL run code that may end the read-only transaction and write in another one. "
            "Ask for what you need by a SELECT, or run this with read_only=False."
        )
    if ";" in text.rstrip(_END) and next(words, None) is not None:
        raise ValueError(
            "There are several statements in one string. With read_only=True it must be one: the "
            "second could end the read-only transaction. Run them one by one."
        )


def first_words(text: str, *, backslashes: bool = False) -> Iterator[str]:
    r"""The first word of each statement, in lower case; empty for one that begins with none.

    >>> list(first_words("SELECT ';' -- ; \n; /* a; /* b */ c; */ COMMIT; ;"))
    ['select', 'commit']
    >>> list(first_words("(SELECT $q$;$q$);"))
    ['']

    Args:
        text: one or more statements.
        backslashes: whether they escape in every text, as with standard_conforming_strings off.

    """
    rest = _REST_WITH_BACKSLASHES if backslashes else _REST
    at = _skip(_BETWEEN, text, 0)
    while at < len(text):
        found = _WORD.match(text, at)
        # What looks like a word may be the E or U& before a text.
        is_word = found and text[found.end() : found.end() + 1] not in {"'", "&"}
        yield found[0].lower() if found and is_word else ""
        at = _skip(_BETWEEN, text, _skip(rest, text, at))


def _skip(what: re.Pattern[str], text: str, at: int) -> int:
    """Where this ends, and the comments among it."""
    while True:
        at = what.match(text, at).end()  # type: ignore[union-attr]  # it matches emptiness
        if not text.startswith("/*", at):
            return at
        at = _after_comment(text, at + 2)


def _after_comment(text: str, at: int) -> int:
    """Where a comment ends whose inside begins here. They nest."""
    depth = 1
    while depth and (found := _COMMENT_ENDS.search(text, at)):
        depth += 1 if found[0] == "/*" else -1
        at = found.end()
    return len(text) if depth else at
