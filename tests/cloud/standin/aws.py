"""AWS's own services as a client meets them: TLS under their names, keys, permissions, errors.

moto answers, in memory; the function is really run. In front of it, what moto leaves out: whose
key signed, whether it has expired, and whether policies allow what is asked. Run as a program, with
what it needs to know as JSON on standard input; it ends when that is closed.
"""

from __future__ import annotations

import json
import re
import ssl
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from standing import Identities, allowed, run

sys.path.append(str(Path(__file__).parent.parent.parent))
from cloud.moto_resources import IMAGE, cloudformation_backends, teach
from moto.core import DEFAULT_ACCOUNT_ID
from moto.ec2.models import ec2_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from moto.sqs.models import Queue

from workshop_lib.services import cloud_emulation

CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 Credential=([^/, ]+)/\d{8}/([a-z0-9-]+)/([a-z0-9-]+)/")
NOT_XML = ("sqs", "monitoring", "lambda", "logs", "dsql")
"""Services that speak JSON; of the others' errors, s3 has a form of its own."""
S3_ACTIONS = {
    "GET": "GetObject",
    "HEAD": "GetObject",
    "PUT": "PutObject",
    "POST": "PutObject",  # in parts
    "DELETE": "DeleteObject",
}
SAY_DENIED = {"s3", "cloudformation", "sts"}
OPERATIONS = {"monitoring": "cloudwatch"}
"""How policies call a service that signatures call something else."""
EXPIRED = (400, "ExpiredToken", "The security token included in the request is expired")
UNKNOWN = (403, "InvalidClientTokenId", "The security token included in the request is invalid.")


class Handler(cloud_emulation.Handler):
    """Looks at who asks for what; then moto answers, or a refusal is sent."""

    server: Server

    def _any(self) -> None:
        body = self._body()
        found = CREDENTIAL.match(self.headers.get("Authorization", ""))
        if found is None:
            return self._deny("s3", 403, "AccessDenied", "Access Denied")
        key, region, service = found.groups()
        identity = self.server.identities.of(key)
        if identity is None:
            return self._deny(service, *UNKNOWN)
        if identity.state == "expired":
            return self._deny(service, *EXPIRED)
        action, resource, conditions = self._asked(service, region, body)
        if action and not allowed(identity, action, resource, conditions):
            who = f"arn:aws:sts::{DEFAULT_ACCOUNT_ID}:assumed-role/workshop/session"
            said = f"User: {who} is not authorized to perform: {action} on resource: {resource}"
            code = "AccessDenied" if service in SAY_DENIED else "AccessDeniedException"
            return self._deny(service, 403, code, said)
        if service in cloud_emulation.SERVICES and self.command == "POST":
            return self._hand_on(service, body)
        if service == "lambda" and self.path.endswith("/invocations"):
            return self._invoke(body)
        return self._dispatch(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _any  # noqa: N815

    def handle_expect_100(self) -> bool:
        """Say at once that the body may come: answers are buffered otherwise."""
        going = super().handle_expect_100()
        self.wfile.flush()
        return going

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return found

    def _asked(self, service: str, region: str, body: bytes) -> tuple[str, str, dict[str, str]]:
        """The action and the resource as policies name them; no action where all is allowed."""
        address = urlsplit(self.path)
        if service == "s3":
            bucket = self.headers["Host"].split(".s3.", 1)[0]
            key = unquote(address.path.lstrip("/"))
            if bucket == self.headers["Host"]:
                bucket, _, key = key.partition("/")
            if not key:
                return ("s3:ListBucket" if self.command in {"GET", "HEAD"} else "s3:CreateBucket",
                        f"s3:{bucket}", {})  # fmt: skip
            return f"s3:{S3_ACTIONS[self.command]}", f"s3:{bucket}/{key}", {}
        if service == "lambda":
            name = address.path.split("/")[3] if address.path.count("/") > 2 else ""
            place = f"lambda:{region}:function:{name}"
            if address.path.endswith("/invocations"):
                return "lambda:InvokeFunction", place, {}
            return "lambda:GetFunction", place, {}
        if service in {"sqs", "monitoring"}:
            operation = self.headers["X-Amz-Target"].split(".")[1]
            given = json.loads(body or b"{}")
            operation = operation.removesuffix("Batch")
            name = f"{OPERATIONS.get(service, service)}:{operation}"
            if service == "monitoring":
                return name, "*", {"cloudwatch:namespace": given.get("Namespace", "")}
            queue = given.get("QueueName") or given.get("QueueUrl", "").rsplit("/", 1)[-1]
            return name, f"sqs:{region}:{queue}", {}
        if service == "sts":
            return "", "", {}
        form = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
        if service == "cloudformation" and form.get("Action") == "DescribeStacks":
            return "cloudformation:DescribeStacks", _stack(form.get("StackName", ""), region), {}
        return f"{service}:{form.get('Action', self.command + address.path)}", "*", {}

    def _deny(self, service: str, status: int, code: str, message: str) -> None:
        if service == "s3":
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            kind = "application/xml"
        elif service in NOT_XML:
            text, kind = json.dumps({"__type": code, "message": message}), "application/json"
        else:
            error = f"<Type>Sender</Type><Code>{code}</Code><Message>{message}</Message>"
            text, kind = f"<ErrorResponse><Error>{error}</Error></ErrorResponse>", "text/xml"
        body = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("x-amzn-errortype", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _invoke(self, body: bytes) -> None:
        """Pass it on to where functions are really run, if any is."""
        if not self.server.functions.exists():
            self._deny("lambda", 404, "ResourceNotFoundException", "Function not found")
            return
        place = urlsplit(self.server.functions.read_text())
        behind = HTTPConnection(place.hostname, place.port)
        behind.request("POST", self.path, body)
        with behind.getresponse() as answer:
            text = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
        behind.close()
        self.wfile.write(text)

    def _dispatch(self, body: bytes) -> None:
        """Have moto's own server answer, as a WSGI application."""
        said: list[Any] = []
        environment = self._environment(body) | {
            "wsgi.url_scheme": "https",
            "wsgi.errors": sys.stderr,
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "SERVER_PORT": "443",
            "PATH_INFO": unquote(self.path.partition("?")[0]),
            "RAW_URI": self.path,
        }
        environment.pop("HTTP_TRANSFER_ENCODING", None)
        with cloud_emulation._turn:
            parts = self.server.moto(environment, lambda *answer: said.append(answer))
            text = b"".join(parts)
        status, headers = said[0][:2]
        self.send_response_only(int(status.split()[0]), status.partition(" ")[2])
        skipped = {"content-length", "connection", "date", "server"}
        length = str(len(text))
        for name, value in headers:
            if name.lower() not in skipped:
                self.send_header(name, value)
            elif name.lower() == "content-length" and self.command == "HEAD":
                length = value
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)


class Server(cloud_emulation.Server):
    """All of AWS's services at one port: who is asked for says each request's signature."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), "unused")
        self.RequestHandlerClass = Handler
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(told["certificate"], told["key"])
        self.identities = Identities(Path(told["identities"]))
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.functions = Path(told["functions"])

    def finish_request(self, request: Any, client_address: Any) -> None:
        """In the thread of the connection, so that nobody waits for another's handshake."""
        with self.tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _stack(name: str, region: str) -> str:
    """The stack of this name as policies name it; one that is not there, if it is not."""
    stacks = cloudformation_backends[DEFAULT_ACCOUNT_ID][region].stacks.values()
    found = next((one.stack_id for one in stacks if one.name == name), None)
    return f"cloudformation:{region}:{found.split(':', 5)[5] if found else f'stack/{name}/none'}"


def main() -> None:
    told = json.loads(sys.stdin.readline())
    cloud_emulation.use_fast_queues(*told["regions"])
    teach(pytest.MonkeyPatch())
    # moto would hand messages to functions by itself, in Docker; whoever runs the function does it.
    Queue.lambda_event_source_mappings = property(lambda _: {}, lambda *_: None)
    for region in told["regions"]:
        images = ec2_backends[DEFAULT_ACCOUNT_ID][region].amis
        images[IMAGE] = next(iter(images.values()))
    server = Server(told)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run(server.server_address[1])


if __name__ == "__main__":
    main()
