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
NEEDS_NONE = {"sts:GetCallerIdentity"}
"""Actions that no policy has to allow."""
OPERATIONS = {"monitoring": "cloudwatch"}
"""How policies call a service that signatures call something else."""
REDELIVERY_S = 0.2
OF_A_SERVER = {"Connection", "Date", "Server"}


@dataclass(frozen=True)
class Asked:
    """A request in the words of policies."""

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
            return self._deny("s3", 403, "AccessDenied", "Access Denied")
        key, region, service = found.groups()
        asked = self._asked(service, region, body)
        if fault := self._fault(self.account.of(key), service, asked):
            return self._deny(service, *fault)
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
        """This request in the words of policies, as far as a policy here names it."""
        path = unquote(urlsplit(self.path).path)
        target = self.headers.get("X-Amz-Target", "")
        if service == "s3":
            bucket = self.headers["Host"].partition(".s3.")[0]
            name = S3_ACTIONS.get(self.command, "PutObject") if path != "/" else "ListBucket"
            return Asked(f"s3:{name}", f"s3::{bucket}{path.rstrip('/')}")
        if service == "lambda":
            name = path.removesuffix("/invocations").rsplit("/", 1)[-1]
            return Asked("lambda:InvokeFunction", f"lambda:{region}:function:{name}")
        if target:
            operation = target.split(".")[1].removesuffix("Batch")
            given = json.loads(body or b"{}")
            space = {"cloudwatch_namespace": given.get("Namespace", "")}
            queue = given.get("QueueName") or given.get("QueueUrl", "").rsplit("/", 1)[-1]
            named = f"sqs:{region}:{queue}" if service == "sqs" else "*"
            return Asked(f"{OPERATIONS.get(service, service)}:{operation}", named, space)
        form = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
        action, stack = f"{service}:{form.get('Action', '')}", form.get("StackName", "")
        # A stack is named as it was asked for, whether it is there or not.
        return Asked(action, f"cloudformation:{region}:stack/{stack}/*")

    def _fault(
        self, identity: Identity | None, service: str, asked: Asked
    ) -> tuple[int, str, str] | None:
        """Status, code and text of a refusal, if it is refused."""
        if identity is None:
            says = "The security token included in the request is invalid."
            return 403, "InvalidClientTokenId", says
        if identity.expired:
            return 400, "ExpiredToken", "The security token included in the request is expired"
        if asked.action in NEEDS_NONE or identity.may(
            asked.action, asked.resource, **asked.conditions
        ):
            return None
        who = f"arn:aws:sts::{ACCOUNT}:assumed-role/workshop/session"
        doing = f"{asked.action} on resource: {asked.resource}"
        code = "AccessDenied" if service in SAY_DENIED else "AccessDeniedException"
        return 403, code, f"User: {who} is not authorized to perform: {doing}"

    def _deny(self, service: str, status: int, code: str, message: str) -> None:
        if service in JSON:
            return self.refuse(status, code, message)
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        if service != "s3":
            text = f"<ErrorResponse>{text}</ErrorResponse>"
        body = b"" if self.command == "HEAD" else text.encode()
        return self.reply(status, body, {"Content-Type": "application/xml"})

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
