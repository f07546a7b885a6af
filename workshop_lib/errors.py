"""The few errors of the workshop: each says what happened, the likely cause and the next step."""

from __future__ import annotations

import re

_ACCOUNT = re.compile(r"(?<![0-9A-Za-z])\d{12}(?![0-9A-Za-z])")
_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")
_SECRET = re.compile(
    r"(?i)(x-amz-security-token[=:] ?|signature[=:] ?|authorization failure message: )[^\s,&'\"]+"
)


def one_line(said: object) -> str:
    r"""An error's text, or another's, as it may stand in a sentence that others will read.

    That is on one line, and without what AWS repeats of whoever asked: the account's number, keys,
    signatures and session tokens.

    >>> one_line("FATAL:  no\n\tsuch role\n")
    'FATAL: no such role'
    >>> one_line("arn:aws:iam::123456789012:role/R may not perform s3:PutObject")
    'arn:aws:iam::…:role/R may not perform s3:PutObject'
    """
    text = " ".join(str(said).split())
    return _ACCOUNT.sub("…", _KEY.sub("…", _SECRET.sub(r"\1…", text)))


class WorkshopError(Exception):
    """A foreseen mistake or fault. Its text is written for the person who meets it."""

    def _render_traceback_(self) -> list[str]:
        """Show the sentence alone in a notebook: IPython calls this instead of drawing a traceback.

        Returns:
            The lines to show.

        """
        return [f"{type(self).__name__}: {self}"]


class SettingsError(WorkshopError, ValueError):
    """A setting is missing, malformed or contradicts another one."""


class EngineError(WorkshopError, RuntimeError):
    """A local engine could not be started, found or stopped."""


class ServiceUnreachableError(WorkshopError, ConnectionError):
    """A database, cache or object store gave no answer, or refused this client."""


class PoolTimeoutError(WorkshopError, TimeoutError):
    """No connection became free within the pool's wait limit."""


class TransactionError(WorkshopError, RuntimeError):
    """A transaction was not committed, or it is not known whether it was."""


class DataError(WorkshopError, ValueError):
    """A data set was asked for that does not exist or is out of range."""


class ResultError(WorkshopError, ValueError):
    """A measurement could not be recorded or read back."""


class RunError(WorkshopError, ValueError):
    """A run was asked for that cannot start: an unknown notebook, parameter or value."""


class AwsError(WorkshopError, RuntimeError):
    """AWS was asked for something that it cannot do, may not do for you, or did not manage."""
