"""AWS's own services as a client meets them: TLS under their names, keys, permissions, errors.

moto answers, in memory. In front of it is what moto leaves out: whose key signed, and whether
policies allow what is asked.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from io import BytesIO
from urllib.parse import parse_qsl

from lambda_service import LambdaService, refuse
from policies import Identity
from werkzeug.wrappers import Request, Response

ACCOUNT = "123456789012"
"""As moto has it."""

CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/, ]+)/\d{8}/([a-z0-9-]+)/([a-z0-9-]+)/")
JSON = {"sqs", "monitoring", "lambda", "logs", "dsql"}
"""Services that speak it; of the others' errors, s3 has a form of its own."""
S3_ACTIONS = {"GET": "GetObject", "HEAD": "GetObject", "DELETE": "DeleteObject"}
SAY_DENIED = {"s3", "cloudformation", "sts"}
NEEDS_NONE = {"sts:GetCallerIdentity"}
"""Actions that no policy has to allow."""
OPERATIONS = {"monitoring": "cloudwatch"}
"""How policies call a service that signatures call something else."""
REDELIVERY_S = 0.2


@dataclass(frozen=True)
class Asked:
    """A request in the words of policies."""

    action: str
    resource: str = "*"
    conditions: dict[str, str] = field(default_factory=dict)


@dataclass
class Account:
    """What there is, and what answers requests to it.

    Attributes:
        identities: who may sign, by name.
        function: the one that is really run, if any is.

    """

    identities: dict[str, Identity] = field(default_factory=dict)
    function: LambdaService | None = None

    def __post_init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.moto = DomainDispatcherApplication(create_backend_app)
        self.turn = threading.Lock()
        """Held while moto answers: it keeps no order among threads, and loses messages without."""

    def answer(self, request: Request) -> Response:
        """Look at who asks for what; then moto answers, or it is refused."""
        found = CREDENTIAL.match(request.headers.get("Authorization", ""))
        if found is None:
            return _deny("s3", 403, "AccessDenied", "Access Denied")
        key, region, service = found.groups()
        identity = next((one for one in self.identities.values() if one.key == key), None)
        if fault := _fault(identity, service, _asked(request, service, region)):
            return _deny(service, *fault)
        if service == "lambda" and request.path.endswith("/invocations"):
            assert self.function is not None
            return self.function.answer(request)
        return self._ask_moto(request)

    def _ask_moto(self, request: Request) -> Response:
        """Have moto answer; a receiver of messages is kept waiting here, where others can go on."""
        body, end = request.get_data(), 0.0
        receives = request.headers.get("X-Amz-Target", "").endswith(".ReceiveMessage")
        if receives:
            given = json.loads(body)
            end = time.monotonic() + given.get("WaitTimeSeconds", 0)
            body = json.dumps(given | {"WaitTimeSeconds": 0}).encode()
        environment = {**request.environ, "CONTENT_LENGTH": str(len(body))}
        environment.pop("HTTP_TRANSFER_ENCODING", None)
        while True:
            with self.turn:
                asked = {**environment, "wsgi.input": BytesIO(body)}
                answer = Response.from_app(self.moto, asked, buffered=True)
            if not receives or time.monotonic() > end or b'"Messages"' in answer.data:
                return answer
            time.sleep(REDELIVERY_S)


def _asked(request: Request, service: str, region: str) -> Asked:
    """This request in the words of policies, as far as a policy here names it."""
    path, target = request.path, request.headers.get("X-Amz-Target", "")
    if service == "s3":
        bucket = request.host.partition(".s3.")[0]
        name = S3_ACTIONS.get(request.method, "PutObject") if path != "/" else "ListBucket"
        return Asked(f"s3:{name}", f"s3::{bucket}{path.rstrip('/')}")
    if service == "lambda":
        name = path.removesuffix("/invocations").rsplit("/", 1)[-1]
        return Asked("lambda:InvokeFunction", f"lambda:{region}:function:{name}")
    if target:
        operation = target.split(".")[1].removesuffix("Batch")
        given = json.loads(request.get_data() or b"{}")
        space = {"cloudwatch_namespace": given.get("Namespace", "")}
        queue = given.get("QueueName") or given.get("QueueUrl", "").rsplit("/", 1)[-1]
        named = f"sqs:{region}:{queue}" if service == "sqs" else "*"
        return Asked(f"{OPERATIONS.get(service, service)}:{operation}", named, space)
    form = dict(parse_qsl(request.get_data(as_text=True)))
    action, stack = f"{service}:{form.get('Action', '')}", form.get("StackName", "")
    # A stack is named as it was asked for, whether it is there or not.
    return Asked(action, f"cloudformation:{region}:stack/{stack}/*")


def _fault(identity: Identity | None, service: str, asked: Asked) -> tuple[int, str, str] | None:
    """Status, code and text of a refusal, if it is refused."""
    if identity is None:
        says = "The security token included in the request is invalid."
        return 403, "InvalidClientTokenId", says
    if asked.action in NEEDS_NONE or identity.may(asked.action, asked.resource, **asked.conditions):
        return None
    who = f"arn:aws:sts::{ACCOUNT}:assumed-role/workshop/session"
    doing = f"{asked.action} on resource: {asked.resource}"
    code = "AccessDenied" if service in SAY_DENIED else "AccessDeniedException"
    return 403, code, f"User: {who} is not authorized to perform: {doing}"


def _deny(service: str, status: int, code: str, message: str) -> Response:
    if service in JSON:
        return refuse(status, code, message)
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    if service != "s3":
        text = f"<ErrorResponse>{text}</ErrorResponse>"
    return Response(text, status, mimetype="application/xml")
