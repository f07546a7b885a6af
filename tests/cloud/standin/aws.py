"""AWS's own services as a client meets them: TLS under their names, keys, permissions, errors.

moto answers, in memory. In front of it is what moto leaves out: whose key signed, whether the
session has ended, and whether policies allow what is asked.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from lambda_runtime import LambdaService, Quiet
from policies import Identity
from werkzeug.serving import DechunkedInput
from werkzeug.test import Client

ACCOUNT = "123456789012"
"""As moto has it."""

CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/, ]+)/\d{8}/([a-z0-9-]+)/([a-z0-9-]+)/")
JSON = {"sqs", "monitoring", "lambda", "logs", "dsql"}
"""Services that speak it; of the others' errors, s3 has a form of its own."""
S3_ACTIONS = {"GET": "GetObject", "HEAD": "GetObject", "DELETE": "DeleteObject"}
SAY_DENIED = {"s3", "cloudformation", "sts"}
OPERATIONS = {"monitoring": "cloudwatch"}
"""How policies call a service that signatures call something else."""
REDELIVERY_S = 0.05
OF_A_SERVER = {"Connection", "Date", "Server"}


@dataclass(frozen=True)
class Fault:
    """What a request is answered in the place of an answer."""

    status: int
    code: str
    message: str


@dataclass(frozen=True)
class Asked:
    """A request in the words of policies; no action where all is allowed."""

    action: str
    resource: str = "*"
    conditions: dict[str, str] = field(default_factory=dict)


@dataclass
class Account:
    """What there is.

    Attributes:
        identities: who may sign, by name.
        function: the one that is really run, if any is.


    """

    identities: dict[str, Identity] = field(default_factory=dict)
    function: LambdaService | None = None

    def __post_init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self.moto = Client(DomainDispatcherApplication(create_backend_app), use_cookies=False)
        self.turn = threading.Lock()
        """Held while moto answers: it keeps no order among threads, and loses messages without."""

    def of(self, key: str) -> Identity | None:
        return next((one for one in self.identities.values() if one.key == key), None)


class Handler(Quiet):
    """Looks at who asks for what; then moto answers, or a refusal is sent."""

    account: Account

    def _any(self) -> None:
        body = self.body()
        found = CREDENTIAL.match(self.headers.get("Authorization", ""))
        if found is None:
            return self._deny("s3", Fault(403, "AccessDenied", "Access Denied"))
        key, region, service = found.groups()
        asked = self._asked(service, region, body)
        fault = self._fault(self.account.of(key), service, asked)
        if fault:
            return self._deny(service, fault)
        if service == "lambda" and self.path.endswith("/invocations"):
            return self._invoke(body)
        return self._answer(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _any  # noqa: N815

    def handle_expect_100(self) -> bool:
        """Say at once that the body may come: answers are buffered otherwise."""
        going = super().handle_expect_100()
        self.wfile.flush()
        return going

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            return DechunkedInput(self.rfile).read()
        return super().body()

    def _asked(self, service: str, region: str, body: bytes) -> Asked:
        path = unquote(urlsplit(self.path).path)
        if service == "s3":
            bucket, named, _ = self.headers["Host"].partition(".s3.")
            key = path.lstrip("/")
            if not named:
                bucket, _, key = key.partition("/")
            if key:
                return Asked(
                    f"s3:{S3_ACTIONS.get(self.command, 'PutObject')}", f"s3::{bucket}/{key}"
                )
            name = "ListBucket" if self.command in {"GET", "HEAD"} else "CreateBucket"
            return Asked(f"s3:{name}", f"s3::{bucket}")
        if service == "lambda":
            name = path.split("/")[3] if path.count("/") > 2 else ""
            does = "InvokeFunction" if path.endswith("/invocations") else "GetFunction"
            return Asked(f"lambda:{does}", f"lambda:{region}:function:{name}")
        if service in {"sqs", "monitoring"}:
            operation = self.headers["X-Amz-Target"].split(".")[1].removesuffix("Batch")
            action = f"{OPERATIONS.get(service, service)}:{operation}"
            given = json.loads(body or b"{}")
            if service == "monitoring":
                return Asked(action, "*", {"cloudwatch_namespace": given.get("Namespace", "")})
            queue = given.get("QueueName") or given.get("QueueUrl", "").rsplit("/", 1)[-1]
            return Asked(action, f"sqs:{region}:{queue}")
        form = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
        action = f"{service}:{form.get('Action', self.command + path)}"
        if action == "sts:GetCallerIdentity":
            return Asked("")
        if action == "cloudformation:DescribeStacks":
            return Asked(action, _stack(form.get("StackName", ""), region))
        return Asked(action)

    def _fault(self, identity: Identity | None, service: str, asked: Asked) -> Fault | None:
        """Why it is refused, if it is."""
        if identity is None:
            says = "The security token included in the request is invalid."
            return Fault(403, "InvalidClientTokenId", says)
        if identity.expired:
            says = "The security token included in the request is expired"
            return Fault(400, "ExpiredToken", says)
        if asked.action and not identity.may(asked.action, asked.resource, **asked.conditions):
            who = f"arn:aws:sts::{ACCOUNT}:assumed-role/workshop/session"
            doing = f"{asked.action} on resource: {asked.resource}"
            code = "AccessDenied" if service in SAY_DENIED else "AccessDeniedException"
            return Fault(403, code, f"User: {who} is not authorized to perform: {doing}")
        return None

    def _deny(self, service: str, fault: Fault) -> None:
        if service in JSON:
            return self.refuse(fault.status, fault.code, fault.message)
        text = f"<Error><Code>{fault.code}</Code><Message>{fault.message}</Message></Error>"
        if service != "s3":
            text = f"<ErrorResponse>{text}</ErrorResponse>"
        body = b"" if self.command == "HEAD" else text.encode()
        return self.reply(fault.status, body, {"Content-Type": "application/xml"})

    def _invoke(self, body: bytes) -> None:
        if self.account.function:
            self.account.function.answer(self, self.path.split("/")[3], body)
        else:
            self.refuse(404, "ResourceNotFoundException", "Function not found")

    def _answer(self, body: bytes) -> None:
        """Have moto answer; a receiver of messages is kept waiting here, where others can go on."""
        end = 0.0
        if self.headers.get("X-Amz-Target", "").endswith(".ReceiveMessage"):
            given = json.loads(body)
            end = time.monotonic() + given.get("WaitTimeSeconds", 0)
            body = json.dumps(given | {"WaitTimeSeconds": 0}).encode()
        while True:
            status, headers, text = self._ask_moto(body)
            if time.monotonic() > end or json.loads(text).get("Messages"):
                break
            time.sleep(REDELIVERY_S)
        said = {name.title(): value for name, value in headers.items()}
        self.reply(status, text, {name: said[name] for name in said.keys() - OF_A_SERVER})

    def _ask_moto(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        dropped = {"transfer-encoding", "content-length"}
        headers = [(k, v) for k, v in self.headers.items() if k.lower() not in dropped]
        with self.account.turn:
            answer = self.account.moto.open(
                self.path,
                base_url=f"https://{self.headers['Host']}",
                method=self.command,
                headers=headers,
                data=body,
            )
            return answer.status_code, dict(answer.headers), answer.data


def _stack(name: str, region: str) -> str:
    """How policies are asked about a stack: by what it was called, whether it is there or not."""
    if name.startswith("arn:"):
        return f"cloudformation:{region}:{name.split(':', 5)[5]}"
    return f"cloudformation:{region}:stack/{name}/*"
