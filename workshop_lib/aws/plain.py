"""What AWS says, in plain words: the errors of calls, and the reasons of resources that failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError as NoConnectionError,
    HTTPClientError,
)
from botocore.parsers import ResponseParserError

from workshop_lib.errors import AwsError, redact
from workshop_lib.services import error_help as meaning

ADVICE_NOT_ALLOWED = (
    "You may not do this. Ask the account's administrator for the action that is named, or use a "
    "role that has it."
)

# What a reason of CloudFormation contains, in small letters, and what helps. The first that fits.
ADVICE = (
    (
        ("service linked role", "service-linked role", "createservicelinkedrole"),
        (
            "The first cluster or cache of an account needs a service-linked role, which you may "
            "not create. Ask for iam:CreateServiceLinkedRole, or have an administrator run "
            "`aws iam create-service-linked-role --aws-service-name elasticache.amazonaws.com` "
            "(dsql.amazonaws.com for the database)."
        ),
    ),
    (
        ("accessdenied", "access denied", "not authorized", "unauthorizedoperation"),
        ADVICE_NOT_ALLOWED,
    ),
    (
        ("limitexceeded", "limit exceeded", "quota", "maximum number", "has been reached"),
        (
            "A limit of the account is reached. Delete what is no longer needed, or ask for more "
            "under Service Quotas in the console."
        ),
    ),
    (
        ("already exists", "alreadyexists", "conflictexception"),
        (
            "Something of that name is there already, perhaps of a stack that was deleted in part. "
            "Delete it, or take another name for the stack (--stack)."
        ),
    ),
    (
        ("unreservedconcurrentexecution",),
        (
            "The account has too few concurrent executions to keep some for this function. Deploy "
            "with -p FunctionReserved=-1."
        ),
    ),
    (
        (
            "availability zone",
            "not available in",
            "not supported in",
            "unsupported in this region",
            "does not support",
            "insufficient capacity",
            "insufficientinstancecapacity",
        ),
        (
            "This Region or zone has no such thing, or none left. Another size or processor may do "
            "(-p NotebookHostSize=large, -p Architecture=x86_64), else another Region."
        ),
    ),
    (
        ("deleteconflict", "policy attached to", "must be detached"),
        (
            "A role or user still has the notebooks' policy: `aws iam list-entities-for-policy "
            "--policy-arn ARN` shows whose (the output NotebookPolicyArn). Detach it, then try "
            "again."
        ),
    ),
    (
        ("deletion protection",),
        "The database is protected: deploy with -p DeletionProtection=false first.",
    ),
    (
        ("networkinterface", "network interface", "has dependencies", "dependency violation",
         "has a dependent object"),
        (
            "Lambda gives its network interfaces back up to 40 minutes after the function has "
            "gone: wait, then try again. A CloudShell environment in the network holds one as "
            "well: delete that."
        ),
    ),
)  # fmt: skip


def advise(reason: str) -> str:
    """What helps against a reason that CloudFormation gave; empty if nothing is known."""
    low = reason.lower()
    return next((advice for signs, advice in ADVICE if any(sign in low for sign in signs)), "")


def passes_by_itself(error: Exception) -> bool:
    """Whether asking again later may well succeed: too many requests, or no way there."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return meaning.cause_of(error) == "busy" or status >= 500
    return isinstance(error, (NoConnectionError, HTTPClientError))


@contextmanager
def plainly(doing: str) -> Iterator[None]:
    """Turn what boto3 raises inside into an error for the person who meets it.

    Args:
        doing: what was being done, as it fits behind "could not": "look for the stack".

    Raises:
        AwsError: boto3 raised.

    """
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error, ResponseParserError) as error:
        raise explain(error, doing) from None


def explain(error: Exception, doing: str) -> AwsError:
    """What went wrong, why, and what to do.

    Args:
        error: of boto3.
        doing: what was being done, as it fits behind "could not".

    """
    said = f"Could not {redact(doing)}: {meaning.error_text(error)}"
    return AwsError(f"{said} {_next_step(error)}".rstrip())


def _next_step(error: Exception) -> str:
    cause = meaning.cause_of(error)
    if cause == "not allowed":
        # The table's advice is for those who work on the stack, not for those who make it.
        return ADVICE_NOT_ALLOWED
    if cause == "unknown":
        return advise(str(error))
    advice = meaning.advice(error)
    if cause == "key unknown":
        advice += " A Region that the account has to switch on first gives the same answer."
    return advice
