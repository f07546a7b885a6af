"""Where one SQL statement ends and the next one begins, by PostgreSQL's lexical rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NAME = r"[A-Za-z_\x80-\U0010ffff]"
_NAME_GOES_ON = r"[A-Za-z0-9_$\x80-\U0010ffff]"
_ESCAPED = r"'(?:[^'\\]|\\.|'')*+(?:'|\Z)"
# A text goes on in the next line: 'a'⏎'b' is 'ab'. What E means holds for all of it.
_NEXT_LINE = r"(?:[ \t\f\v]|--[^\n\r]*+)*+[\n\r](?:[ \t\f\v\n\r]|--[^\n\r]*+[\n\r])*+"
_TOKEN = re.compile(
    rf"""
      (?P<space> [ \t\n\r\f\v]+ | --[^\n\r]* )
    | (?P<comment> /\* )
    | (?P<end> ; )
    | [eE] {_ESCAPED} (?: {_NEXT_LINE} {_ESCAPED} )*+
    | (?P<text> ' (?:[^']|'')*+ (?:'|\Z) )
    | " (?:[^"]|"")*+ (?:"|\Z)
    | \$ (?P<tag> (?: {_NAME} [A-Za-z0-9_\x80-\U0010ffff]* )? ) \$ .*? (?: \$ (?P=tag) \$ | \Z )
    | (?P<word> {_NAME} {_NAME_GOES_ON}*+ )
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_BACKSLASHES = re.compile(_ESCAPED, re.DOTALL)
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
    at, between = 0, True
    while found := _TOKEN.match(text, at):
        at = found.end()
        kind = found.lastgroup
        if kind == "comment":
            at = _after_comment(text, at)
        elif kind == "end":
            between = True
        elif kind != "space":
            if kind == "text" and backslashes:
                at = _BACKSLASHES.match(text, found.start()).end()  # type: ignore[union-attr]
            if between:
                yield (found["word"] or "").lower()
                between = False


def _after_comment(text: str, at: int) -> int:
    """Where a comment ends whose inside begins here. They nest."""
    depth = 1
    while depth and (found := _COMMENT_ENDS.search(text, at)):
        depth += 1 if found[0] == "/*" else -1
        at = found.end()
    return len(text) if depth else at
