"""What AWS says, in plain words: errors of calls, reasons of failures, account numbers hidden."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from boto3.exceptions import Boto3Error
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError as NoConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from workshop_lib.errors import AwsError, one_line

SIGN_IN = (
    "Sign in (`aws sso login`, `aws configure`, or AWS_PROFILE for another profile); "
    "`aws sts get-caller-identity` shows who you are."
)
_ACCOUNT = re.compile(r"(?<![0-9A-Za-z])\d{12}(?![0-9A-Za-z])")
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_UNKNOWN_KEY = {
    "AuthFailure",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_REFUSED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"}
_THROTTLED = {
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}

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
        (
            "You may not do this. Ask whoever manages the account for the action that the reason "
            "names, or deploy with a role that has it."
        ),
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
        ("deletion protection",),
        "The database is protected: deploy with -p DeletionProtection=false first.",
    ),
    (
        ("networkinterface", "network interface", "has dependencies", "dependency violation",
         "has a dependent object"),
        (
            "Lambda gives its network interfaces back up to 40 minutes after the function has "
            "gone. Wait, then try again."
        ),
    ),
)  # fmt: skip


def mask(text: str) -> str:
    """The text without account numbers, which are nobody's business.

    >>> mask("arn:aws:dsql:us-east-1:123456789012:cluster/abc")
    'arn:aws:dsql:us-east-1:<account>:cluster/abc'
    """
    return _ACCOUNT.sub("<account>", text)


def advise(reason: str) -> str:
    """What helps against a reason that CloudFormation gave; empty if nothing is known."""
    low = reason.lower()
    return next((advice for signs, advice in ADVICE if any(sign in low for sign in signs)), "")


def error_code(error: ClientError) -> str:
    """The code of an error, such as "AccessDenied"."""
    return str(error.response.get("Error", {}).get("Code", ""))


def passes_by_itself(error: Exception) -> bool:
    """Whether asking again later may well succeed: too many requests, or no way there."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return error_code(error) in _THROTTLED or status >= 500
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
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise explain(error, doing) from None


def explain(error: ClientError | BotoCoreError | Boto3Error, doing: str) -> AwsError:
    """What went wrong, why, and what to do.

    Args:
        error: of boto3.
        doing: what was being done, as it fits behind "could not".

    """
    said, doing = mask(one_line(error)), mask(doing)
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return AwsError(f"AWS does not know who you are: no credentials were found here. {SIGN_IN}")
    if isinstance(
        error, (CredentialRetrievalError, SSOError, TokenRetrievalError, ProfileNotFound)
    ):
        return AwsError(f"AWS does not know who you are: {said}. {SIGN_IN}")
    if isinstance(error, ClientError):
        return _explain_answer(error, doing)
    if isinstance(error, (NoConnectionError, HTTPClientError)):
        return AwsError(
            f"Could not {doing}: no answer from AWS ({said}). Is the Region's name right, and is "
            "there a way to the internet from here (a proxy, a VPC without endpoints)?"
        )
    return AwsError(f"Could not {doing}: {said.rstrip('.')}.")


def _explain_answer(error: ClientError, doing: str) -> AwsError:
    code = error_code(error)
    message = mask(one_line(error.response.get("Error", {}).get("Message", ""))).rstrip(".")
    if code in _EXPIRED:
        return AwsError(f"Could not {doing}: your session at AWS has expired. {SIGN_IN}")
    if code in _UNKNOWN_KEY:
        return AwsError(
            f"Could not {doing}: AWS does not accept these credentials ({code}). {SIGN_IN} A "
            "Region that has to be switched on for the account first gives the same answer."
        )
    if code in _REFUSED:
        return AwsError(
            f"Could not {doing}: you may not ({message}). Ask whoever manages the account for that "
            "action, or use a role that has it."
        )
    advice = advise(f"{code} {message}")
    return AwsError(f"Could not {doing}: {message or code} ({code}). {advice}".rstrip())
