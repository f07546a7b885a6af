"""How a command talks with the person, and with time: all of it can be handed in by a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workshop_lib.errors import AwsError


@dataclass(frozen=True, slots=True)
class Console:
    """What a command needs from outside.

    Attributes:
        say: shows a line.
        ask: asks a question that is answered with yes or no.
        interactive: whether somebody can answer.
        sleep: waits, seconds.
        clock: a time that only grows, seconds.

    """

    say: Callable[[str], None]
    ask: Callable[[str], bool]
    interactive: bool
    sleep: Callable[[float], None]
    clock: Callable[[], float]

    def confirm(self, *, yes: bool, question: str = "Go on?") -> bool:
        """Whether to go on.

        Args:
            yes: it was said beforehand.
            question: what is asked.

        Raises:
            AwsError: nobody can answer.

        """
        if yes:
            return True
        if not self.interactive:
            raise AwsError(
                "This asks before it changes anything, and there is no terminal to answer at. "
                "Nothing was changed. --yes answers beforehand."
            )
        return self.ask(question)


def table(rows: Sequence[tuple[str, ...]], indent: str = "  ") -> list[str]:
    """Rows of words as lines with straight columns.

    >>> table([("a", "one"), ("long", "two")])
    ['  a     one', '  long  two']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        indent + "  ".join(f"{word:<{w}}" for word, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
