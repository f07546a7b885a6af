"""The few errors of the workshop: each says what happened, the likely cause and the next step."""

from __future__ import annotations

import re

_ACCOUNT_OR_KEY = re.compile(
    r"(?<![0-9A-Za-z])\d{12}(?![0-9A-Za-z])|\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"
)
_SECRET = re.compile(
    r"(?i)(x-amz-security-token[=:] ?|signature[=:] ?|authorization failure message: )[^\s,&'\"]+"
)


def redact(said: object) -> str:
    r"""A text, such as an error's, on one line and without account numbers and secrets.

    AWS repeats in its errors the account's number, keys, signatures and session tokens.

    >>> redact("FATAL:  no\n\tsuch role\n")
    'FATAL: no such role'
    >>> redact("arn:aws:iam::123456789012:role/R may not perform s3:PutObject")
    'arn:aws:iam::…:role/R may not perform s3:PutObject'
    """
    text = " ".join(str(said).split())
    return _ACCOUNT_OR_KEY.sub("…", _SECRET.sub(r"\1…", text))


class WorkshopError(Exception):
    """A foreseen mistake or fault; its text says what happened and what to do next."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback: IPython calls this."""
        return [f"{type(self).__name__}: {self}"]


class SettingsError(WorkshopError, ValueError):
    """A setting is misspelt, malformed, missing, or contradicts another one."""


class EngineError(WorkshopError, RuntimeError):
    """A local engine (PostgreSQL, Valkey, the object store) did not start or stop."""


class ServiceUnreachableError(WorkshopError, ConnectionError):
    """A database, cache, object store or queue did not answer, or refused this client."""


class PoolTimeoutError(WorkshopError, TimeoutError):
    """Every connection of the pool stayed in use for as long as the caller would wait."""


class TransactionError(WorkshopError, RuntimeError):
    """A transaction was not committed, or its outcome is unknown."""


class DataError(WorkshopError, ValueError):
    """There is no such data set, or a value in it is out of range."""


class ResultError(WorkshopError, ValueError):
    """A measurement cannot be recorded, or a result cannot be read."""


class RunError(WorkshopError, ValueError):
    """A run cannot start: there is no such notebook or parameter, or a value does not fit."""


class AwsError(WorkshopError, RuntimeError):
    """AWS cannot do what was asked, does not allow it, or failed to do it."""
