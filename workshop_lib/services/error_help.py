"""What an error of a service means, and what to do about it: the entries of `advice.toml`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from workshop_lib.errors import redact

if TYPE_CHECKING:
    from workshop_lib.services.endpoints import Endpoint

LIBPQ_GUESS = re.compile(r" (Is|This probably means) the server [^?.]*[?.]?")
"""What libpq adds to a refusal or a lost connection; the advice says it better."""


def error_help(error: BaseException, endpoint: Endpoint | None = None) -> str:
    """What the client library said, the likely cause, and the next step.

    Args:
        error: of boto3, psycopg2, redis, or the network.
        endpoint: the service that was asked; without it, AWS in general.

    """
    return f"{error_text(error)} {advice(error, endpoint)}"


def advice(error: BaseException, endpoint: Endpoint | None = None) -> str:
    """The likely cause and the next step, without the error's own text; as `error_help`."""
    entry = _entry(error, endpoint)
    text: str = entry.get(_whose(endpoint), entry["advice"])
    return text.format(
        port=endpoint.port if endpoint else 443,
        label=endpoint.label if endpoint else "AWS",
        setting=endpoint.setting if endpoint else "it",
        action=_action(error),
        region=_region(endpoint) or "not set",
        bucket_region=bucket_region(error) or "another Region",
    )


def cause_of(error: BaseException, endpoint: Endpoint | None = None) -> str:
    """The cause in a word or two, as `advice.toml` names it; "unknown" if it has none.

    Args:
        error: as in `error_help`.
        endpoint: as in `error_help`.

    """
    return str(_entry(error, endpoint)["cause"])


def error_code(error: BaseException) -> str:
    """The code in an answer of AWS, such as "AccessDenied"; empty for any other error."""
    return str(_part(error, "Error").get("Code", ""))


def bucket_region(error: BaseException) -> str:
    """Where Amazon S3 says that the bucket is, also when it refuses; empty if it does not say."""
    headers = _part(error, "ResponseMetadata").get("HTTPHeaders", {})
    return str(headers.get("x-amz-bucket-region", ""))


def error_text(error: BaseException) -> str:
    """What an error itself says, as one sentence without account numbers and keys."""
    text = LIBPQ_GUESS.sub("", redact(error))
    if isinstance(error, ResponseParserError):  # its own text holds the whole answer
        text = "The answer has not the form of one of AWS"
    elif isinstance(error, ClientError):
        message = redact(_part(error, "Error").get("Message", ""))
        text = f"{error.operation_name} was answered {error_code(error)}: {message}"
    return f"{text.rstrip('.: ') or type(error).__name__}."


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((files(__package__) / "advice.toml").read_text(encoding="utf-8"))


def _entry(error: BaseException, endpoint: Endpoint | None) -> dict[str, Any]:
    """The first entry that recognises the error; the last one recognises any."""
    if isinstance(error, ClientError):
        moved = endpoint and endpoint.aws and bucket_region(error) not in {"", _region(endpoint)}
        known, pattern, text = {"301" if moved else error_code(error)}, "answer", str(error)
    else:
        chain = list(_chain(error))
        known = {kind.__name__ for one in chain for kind in type(one).__mro__}
        known |= {getattr(one, "pgcode", None) or "" for one in chain}
        pattern, text = "words", " ".join(map(str, chain))
    for entry in _table()["error"]:
        names = {*entry.get("codes", ()), *entry.get("classes", ())}
        if known & names or (pattern in entry and re.search(entry[pattern], text, re.IGNORECASE)):
            return dict(entry)
    raise AssertionError("the last entry recognises any error")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it; botocore keeps them among its arguments."""
    one: BaseException | None = error
    for _ in range(8):  # a chain may lead back to its start
        if one is None:
            return
        yield one
        kept = getattr(one, "kwargs", {}).get("error")
        one = kept if isinstance(kept, BaseException) else one.__cause__ or one.__context__


def _whose(endpoint: Endpoint | None) -> str:
    """Whose text to show: a key of an entry in `advice.toml`."""
    if endpoint is None:
        return "aws"
    if endpoint.embedded:
        return "local"
    if endpoint.sandbox:
        return "sandbox"
    return endpoint.kind if endpoint.aws else "advice"


def _action(error: BaseException) -> str:
    """The permission that was missing."""
    if named := re.search(r"not authorized to perform:? ([a-z0-9-]+:[A-Za-z]+)", str(error)):
        return named[1]
    operation = getattr(error, "operation_name", "")
    return _table()["actions"].get(operation, operation) or "the permission that the text names"


def _region(endpoint: Endpoint | None) -> str:
    return str(endpoint.arguments.get("region_name") or "") if endpoint else ""


def _part(error: BaseException, name: str) -> Any:
    """A part of an answer of AWS; empty for any other error."""
    return error.response.get(name, {}) if isinstance(error, ClientError) else {}
