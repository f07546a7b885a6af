"""What an error of AWS, of the network or of a server means, and what to do about it.

The codes are those of "Common error types" in the API references of the services, of "Error
responses" in that of Amazon S3, and of "Troubleshooting Amazon Aurora DSQL"; the names are
botocore's.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from typing import Any

from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from workshop_lib.errors import one_line
from workshop_lib.services.endpoints import CacheEndpoint, DatabaseEndpoint, Endpoint, StoreEndpoint

CODES = {
    # --- who asks ---
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"),
        "session ended",
    ),
    **dict.fromkeys(
        (
            *("SSOError", "SSOTokenLoadError", "UnauthorizedSSOTokenError"),
            *("TokenRetrievalError", "NoAuthTokenError"),
        ),
        "identity center",
    ),
    "LoginError": "console sign-in",
    **dict.fromkeys(
        (
            *("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"),
            *("AuthFailure", "InvalidToken"),
        ),
        "key unknown",
    ),
    **dict.fromkeys(
        ("SignatureDoesNotMatch", "InvalidSignatureException", "IncompleteSignature"),
        "secret wrong",
    ),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestInTheFuture"), "clock"),
    "NoCredentialsError": "no credentials",
    "PartialCredentialsError": "half the credentials",
    "CredentialRetrievalError": "no credentials handed out",
    "MetadataRetrievalError": "no credentials handed out",
    "ProfileNotFound": "no profile",
    **dict.fromkeys(("ConfigParseError", "ConfigNotFound", "InvalidConfigError"), "bad config"),
    "OptInRequired": "not enabled",
    "SubscriptionRequiredException": "not enabled",
    # --- what for ---
    **dict.fromkeys(
        (
            *("AccessDenied", "AccessDeniedException", "UnauthorizedOperation"),
            *("AuthorizationError", "AllAccessDisabled", "403", "Forbidden"),
        ),
        "not allowed",
    ),
    # --- where ---
    **dict.fromkeys(
        (
            *("PermanentRedirect", "301", "TemporaryRedirect", "307"),
            *("IllegalLocationConstraintException", "IllegalLocationConstraint"),
            "AuthorizationHeaderMalformed",
        ),
        "other Region",
    ),
    "NoRegionError": "no Region",
    "InvalidRegionError": "no Region",
    "NoSuchBucket": "no bucket",
    "404": "no bucket",  # to a HEAD, which has no room for a code
    **dict.fromkeys(
        ("QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue"),
        "no queue",
    ),
    "ResourceNotFoundException": "not there",
    # --- not now ---
    **dict.fromkeys(
        (
            *("Throttling", "ThrottlingException", "TooManyRequestsException", "SlowDown"),
            *("RequestLimitExceeded", "RequestThrottled", "ServiceUnavailable", "503"),
            *("InternalError", "InternalFailure", "InternalServiceError", "500"),
        ),
        "busy",
    ),
    # --- the way there: botocore's, redis-py's and Python's own ---
    "ConnectTimeoutError": "silence",
    "ReadTimeoutError": "silence",
    "TimeoutError": "silence",
    "ConnectionRefusedError": "refused",
    "gaierror": "name unknown",
    "SSLCertVerificationError": "certificate",
    "SSLEOFError": "hung up",
    "ProxyConnectionError": "proxy",
    "ResponseParserError": "not AWS",
    "AuthenticationError": "sign-in refused",
}
"""The cause behind an AWS error code, or behind an exception of this name."""

SIGNS = {
    # In this order: the first that the text holds.
    r"password authentication failed|access denied|no password supplied|WRONGPASS|NOAUTH":
        "sign-in refused",
    r"certificate.verify.failed|does not match host name|hostname mismatch|not valid for "
    r"|root certificate": "certificate",
    r"timed out|timeout": "silence",
    r"translate host ?name|resolve|name or service|nodename|name resolution|No address associated"
    r"|Name does not": "name unknown",
    r"refused": "refused",
    r"too many connections|connection slots|rate exceeded": "busy",
    r"closed|reset by peer|broken pipe|EOF|shutting down|starting up|recovery|not yet accepting":
        "hung up",
    r"SSL|TLS|invalid response to": "no TLS",
    r"unreachable|no route": "silence",
}  # fmt: skip
"""What the text of an error says of its cause where neither code nor name do."""

_AGAIN = (
    "`workshop status` shows the local engines; open_workshop() and `workshop check` start them "
    "again."
)

ADVICE = {
    "session ended":
        "Your session with AWS has ended. Sign in again (`aws sso login`, or new keys). If "
        "AWS_SESSION_TOKEN is set here, renew or unset it: it wins over a new sign-in.",
    "identity center":
        "The sign-in by IAM Identity Center has ended, or never was. Do it again: `aws sso login`, "
        "with --profile and the name if AWS_PROFILE is set.",
    "console sign-in":
        "The sign-in of the command line has ended. Do it again: `aws login`.",
    "key unknown":
        "This access key is not known there: check AWS_ACCESS_KEY_ID, and whose key it is.",
    "key unknown, AWS":
        "AWS does not know this access key. One that begins with ASIA needs its AWS_SESSION_TOKEN "
        "too; any other was deleted or is mistyped. `aws configure list` shows where it is from.",
    "secret wrong":
        "The secret key does not belong to the access key. Copy both anew: AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or those of the profile.",
    "clock":
        "The clock of this machine is wrong by more than AWS takes. Compare `date -u` with the "
        "time of day, and set it (`sudo timedatectl set-ntp true`; on WSL2: `wsl --shutdown`).",
    "no credentials":
        "There is no key to sign in with: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    "no credentials, AWS":
        "There is nothing here to sign in to AWS with. Sign in (`aws sso login`, or `aws "
        "configure`), or give this machine a role; AWS_PROFILE chooses one of several profiles. "
        "`aws sts get-caller-identity` answers as soon as it works.",
    "half the credentials":
        "One half of a key is missing. Set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "neither.",
    "no credentials handed out":
        "What should hand out credentials here (the role of this machine, or the profile's "
        "credential_process) failed; the text says why. `aws sts get-caller-identity` tries it "
        "alone.",
    "no profile":
        "AWS_PROFILE names a profile that does not exist. `aws configure list-profiles` shows "
        "those that do; correct or unset AWS_PROFILE.",
    "bad config":
        "The configuration of the AWS command line is faulty. Correct the file that is named: "
        "~/.aws/config, unless AWS_CONFIG_FILE says otherwise.",
    "not enabled":
        "This account has not enabled the service or the Region. Choose another AWS_REGION, or "
        "enable it in the account's settings.",
    "not allowed":
        "The sign-in is known, but may not do this: it takes {action}. Check what it is allowed.",
    "not allowed, bucket":
        "You are signed in, but may not use this bucket so: it takes {action}, and a bucket that "
        "is yours (all accounts share the names). Add that to your role, or attach the stack's "
        "policy to it (its output NotebookPolicyArn).",
    "not allowed, AWS":
        "You are signed in, but may not do this: it takes {action}. Add that to your role, or "
        "attach the stack's policy to it (its output NotebookPolicyArn). `aws iam "
        "list-attached-role-policies --role-name NAME` shows what a role has.",
    "forbidden":
        "A policy forbids {action} expressly: one on the bucket or queue, a permissions boundary, "
        "or one of the organization. Allowing it in your role does not help; change that policy.",
    "endpoint policy":
        "The policy of the VPC endpoint on the way does not allow {action}. Add it there; your "
        "role is not the reason.",
    "other Region":
        "It is in another Region than AWS_REGION says ({region}). Set AWS_REGION to the Region "
        "that everything is in.",
    "no Region":
        "AWS_REGION is not set, or names no Region. Set it to one such as us-east-1.",
    "bucket elsewhere":
        "The bucket is in {bucket_region}, AWS_REGION says {region}. Correct AWS_REGION, or take a "
        "bucket in {region} for BUCKET_NAME.",
    "no bucket":
        "There is no bucket of that name: create it, or correct BUCKET_NAME.",
    "no queue":
        "There is no such queue: create it, or correct QUEUE_URL.",
    "not there":
        "There is nothing of that name. Correct it, or create it: in this account, in AWS_REGION.",
    "busy":
        "The service takes no more at the moment. Wait a minute and try again.",
    "not AWS":
        "What answered is not AWS: a proxy, or the sign-in page of this network, stands between. "
        "Open a web page, sign in to the network, and try again.",
    "proxy":
        "The proxy does not answer. Correct or unset HTTPS_PROXY; inside a VPC none is needed.",
    "certificate":
        "The certificate of what answers is not valid for this name. Use the service's own name, "
        "not an address or an alias, and leave the verification on.",
    "certificate, AWS":
        "The certificate of what answers is not Amazon's for this name, so something stands in "
        "between: a tunnel, an alias, or a proxy that reads along. Use the service's own name and "
        "leave the verification on. If a proxy has to be there, AWS_CA_BUNDLE names the file with "
        "its authority.",
    "no TLS":
        "One side speaks TLS and the other does not. A cache with TLS is rediss://…, a database "
        "?sslmode=verify-full, a store https://…; without it redis://…, ?sslmode=disable, http://….",
    "no TLS, AWS":
        "What answers does not speak TLS, so it is not the service: a tunnel or an alias leads "
        "elsewhere. Use the service's own name.",
    "hung up":
        "Something is there, but hung up: it stopped a moment ago, is of another kind, or expects "
        "TLS (rediss:// for a cache that speaks it). Check address and port, and the server's log.",
    "hung up, AWS":
        "The connection was cut. Try again; if it stays so, something on the way (a proxy, a "
        "firewall) cuts it.",
    "silence":
        "Silence usually means a firewall, which drops the packets. On AWS that is a security "
        "group: let port {port} in from where you are.",
    "silence, local":
        "The local engine is stuck. `workshop stop` ends it, and the next check starts it afresh.",
    "silence, database":
        "Nothing came back: something drops the packets to port 5432. The security group of this "
        "machine has to let 5432 out, that of the cluster's VPC endpoint has to let it in, and "
        "without such an endpoint the subnet needs a NAT gateway. Many offices block 5432: then "
        "run this in the VPC.",
    "silence, cache":
        "Nothing came back: the cache's security group does not let port 6379 in from here, or you "
        "are not in its VPC. Run this in the VPC, with the stack's NotebookSecurityGroup; `aws "
        "elasticache describe-serverless-caches` shows the cache's groups.",
    "silence, AWS":
        "Nothing came back: from here there is no way to {place}. In a VPC it takes a NAT gateway "
        "or a VPC endpoint for that service, and a security group that lets port 443 out.",
    "refused":
        "Nothing listens there. Is the address right, and is the server running?",
    "refused, local": _AGAIN,
    "hung up, local": _AGAIN,
    "refused, AWS":
        "Nothing listens on port {port} there, so this is not the service: an entry in /etc/hosts, "
        "a tunnel, or an address in an AWS_ENDPOINT_URL variable leads elsewhere. Remove it.",
    "name unknown":
        "The host name is unknown here. Check it for typing mistakes.",
    "name unknown, database":
        "The name is unknown here: the cluster's id in DSQL_ENDPOINT is wrong, or it is a name of "
        "PrivateLink, which is known only in its VPC. `aws dsql list-clusters` shows the ids.",
    "name unknown, cache":
        "The name is unknown here: VALKEY_ENDPOINT is mistyped or the cache is deleted; `aws "
        "elasticache describe-serverless-caches` shows the names. Some networks do not pass on "
        "names of private addresses: then run this in the VPC.",
    "name unknown, AWS":
        "The name is unknown here: this machine has no network or no name server, or there is no "
        "such Region. Check AWS_REGION.",
    "sign-in refused":
        "The sign-in was refused: check the user and password in the address.",
    "sign-in refused, database":
        "The sign-in was refused. If `aws sts get-caller-identity` fails, your session has ended: "
        "sign in again. If it answers, your role lacks dsql:DbConnectAdmin for this cluster. A "
        "token of your own making has to be for this host and its Region.",
    "sign-in refused, cache":
        "This cache wants a user and password. Take it by VALKEY_URL=rediss://user:password@host:"
        "6379 instead of VALKEY_ENDPOINT, or take the user group off it.",
    "unknown":
        "The text is the service's own; it is not one that the workshop knows.",
}  # fmt: skip
"""What to say of each cause; where a kind of place stands after it, for that kind only."""

ACTIONS = {
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "GetObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "GetQueueAttributes": "sqs:GetQueueAttributes",
    "Invoke": "lambda:InvokeFunction",
    "GetMetricData": "cloudwatch:GetMetricData",
    "DescribeStacks": "cloudformation:DescribeStacks",
}
"""The permission that an operation takes, for answers that do not name it."""


def explain(error: BaseException, endpoint: Endpoint | None = None) -> str:
    """The likely cause of an error and the next step, in a few sentences for who meets it.

    The error's own text is no part of it.

    Args:
        error: of boto3, psycopg2, redis, or the network.
        endpoint: the service that was asked; without it, AWS as such.

    """
    cause = cause_of(error, endpoint)
    kinds = _kinds(endpoint)
    found = next((f"{cause}, {kind}" for kind in kinds if f"{cause}, {kind}" in ADVICE), cause)
    region = endpoint.arguments.get("region_name") if endpoint else None
    return ADVICE[found].format(
        port=endpoint.port if endpoint else 443,
        place=endpoint.label if endpoint else "AWS",
        action=_action(error),
        region=region or "none",
        bucket_region=bucket_region(error),
    )


def cause_of(error: BaseException, endpoint: Endpoint | None = None) -> str:
    """What is behind an error, in a word or two: a key of `ADVICE`; "unknown" if nothing is known.

    Args:
        error: as in `explain`.
        endpoint: as in `explain`.

    """
    if isinstance(error, ClientError):
        return _cause_of_answer(error, endpoint)
    chain = list(_chain(error))
    for one in reversed(chain):  # what it was made of says more than what was made of it
        names = (kind.__name__ for kind in type(one).__mro__)
        if found := next((CODES[name] for name in names if name in CODES), None):
            return found
        if isinstance(one, ssl.SSLError):
            return "no TLS"
    said = " ".join(map(str, chain))
    return next((c for sign, c in SIGNS.items() if re.search(sign, said, re.IGNORECASE)), "unknown")


def code_of(error: BaseException) -> str:
    """The code of an answer of AWS, such as "AccessDenied"; empty for any other error."""
    if not isinstance(error, ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def bucket_region(error: BaseException) -> str:
    """Where Amazon S3 says that the bucket is, also when it refuses; empty if it does not say."""
    if not isinstance(error, ClientError):
        return ""
    said: Any = error.response.get("ResponseMetadata", {})
    return str(said.get("HTTPHeaders", {}).get("x-amz-bucket-region", ""))


def sentence(error: BaseException) -> str:
    """What an error itself says, as a sentence without account numbers and keys."""
    text = one_line(error)
    if isinstance(error, ResponseParserError):  # its own text holds the whole answer
        text = "The answer has not the form of one of AWS"
    if isinstance(error, ClientError):
        told = one_line(error.response.get("Error", {}).get("Message", ""))
        text = f"{error.operation_name} was answered {code_of(error)}: {told}"
    return f"{text.rstrip('.: ') or type(error).__name__}."


def _cause_of_answer(error: ClientError, endpoint: Endpoint | None) -> str:
    said = str(error)
    if isinstance(endpoint, StoreEndpoint) and endpoint.aws:
        place = bucket_region(error)
        if place and place != endpoint.arguments.get("region_name"):
            return "bucket elsewhere"
    cause = CODES.get(code_of(error), "unknown")
    if cause == "not allowed" and "explicit deny" in said:
        return "forbidden"
    if cause == "not allowed" and "VPC endpoint policy" in said:
        return "endpoint policy"
    if cause == "secret wrong" and re.search("Signature expired|not yet current", said):
        return "clock"
    return cause


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was made of; botocore keeps them among its arguments."""
    one: BaseException | None = error
    for _ in range(8):  # a chain may lead back to its start
        if one is None:
            return
        yield one
        kept = getattr(one, "kwargs", {}).get("error") or getattr(one, "reason", None)
        inner = kept if isinstance(kept, BaseException) else None
        one = inner or one.__cause__ or one.__context__


def _kinds(endpoint: Endpoint | None) -> tuple[str, ...]:
    """The kinds of place that this one is, the most special first."""
    if endpoint is None:
        return ("AWS",)
    if endpoint.embedded:
        return ("local",)
    if not endpoint.aws:
        return ()
    if isinstance(endpoint, DatabaseEndpoint):
        return "database", "AWS"
    if isinstance(endpoint, CacheEndpoint):
        return "cache", "AWS"
    return ("bucket", "AWS") if isinstance(endpoint, StoreEndpoint) else ("AWS",)


def _action(error: BaseException) -> str:
    """The permission that was missing."""
    if named := re.search(r"not authorized to perform:? ([a-z0-9-]+:[A-Za-z]+)", str(error)):
        return named[1]
    operation = getattr(error, "operation_name", "")
    return ACTIONS.get(operation, operation) or "the permission that the text names"
