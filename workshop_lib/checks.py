"""Deployment checks: is everything there, does it answer, and if not, what to do about it."""

from __future__ import annotations

import platform
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec
import redis
from botocore.config import Config

from workshop_lib.database import Database
from workshop_lib.errors import SettingsError, WorkshopError, redact
from workshop_lib.html_table import html_table
from workshop_lib.load.worker import metrics_namespace
from workshop_lib.objects import greet_store, store_client
from workshop_lib.queues import describe_queue, messaging_client
from workshop_lib.services import Endpoint, Endpoints, aws_client, endpoints, resolve
from workshop_lib.services.cache_client import greet_cache
from workshop_lib.services.error_help import advice, error_text
from workshop_lib.settings import LoadedSettings, load_settings

LIMIT_S = 10.0
ENGINES_LIMIT_S = 90.0
ANSWER_S = 5.0
BRIEF = Config(
    connect_timeout=ANSWER_S / 2, read_timeout=ANSWER_S, retries={"total_max_attempts": 1}
)
"""Of an AWS client whose answer, or silence, is itself what is asked for."""
BODY = b"written by a check"

E = TypeVar("E", bound=Endpoint)


@dataclass(frozen=True, slots=True)
class Check:
    """One answered question.

    Attributes:
        ok: whether the answer is as it should be.
        detail: what was found.
        seconds: how long it took.
        advice: what to do; empty unless it failed.

    """

    name: str
    ok: bool
    detail: str
    seconds: float
    advice: str = ""

    @property
    def mark(self) -> str:
        """✓ or ✗."""
        return "✓" if self.ok else "✗"


@dataclass(slots=True)
class Report:
    """The checks of one round, in order.

    Attributes:
        checks: those that were asked.
        on_check: called with each as soon as it is answered.

    """

    checks: list[Check] = field(default_factory=list)
    on_check: Callable[[Check], object] = lambda _: None

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def failed(self) -> Report:
        """Only the checks that did not pass."""
        return Report([check for check in self.checks if not check.ok])

    def to_json(self) -> dict[str, Any]:
        """For `workshop check --json`."""
        return {"ok": self.ok, "checks": msgspec.to_builtins(self.checks)}

    def _repr_html_(self) -> str:
        rows = [
            (c.mark, c.name, c.detail, f"{c.seconds * 1000:.0f} ms", c.advice) for c in self.checks
        ]
        return html_table(("", "check", "found", "took", "what to do"), rows)

    def ask(
        self,
        name: str,
        question: Callable[[], Any],
        endpoint: Endpoint | None = None,
        *,
        show: Callable[[Any], str] = str,
        limit_s: float = LIMIT_S,
        if_late: str = "",
    ) -> Any:
        """Note the answer; return it, or None if it was an error or came too late.

        Args:
            name: what is asked.
            question: answers, or raises.
            endpoint: the place that was asked, for the advice on an error.
            show: the detail to show of the answer.
            limit_s: how long to wait.
            if_late: the advice if it came too late; without it, what is known of silence.

        """
        started = time.perf_counter()
        answer, error = _within(limit_s, question)
        detail, what_to_do = redact(show(answer)) if error is None else redact(error), ""
        if error is not None and not isinstance(error, WorkshopError):  # whose text ends with it
            late = if_late if isinstance(error, TimeoutError) else ""
            detail, what_to_do = error_text(error).rstrip("."), late or advice(error, endpoint)
        seconds = time.perf_counter() - started
        self.checks.append(Check(name, error is None, detail, seconds, what_to_do))
        self.on_check(self.checks[-1])
        return answer


def check_deployment(
    on_check: Callable[[Check], object] = lambda _: None, **settings: Any
) -> Report:
    """Check everything that the notebooks need. Never raises, never hangs.

    What makes sense only after a check that failed is not asked.

    Args:
        on_check: called with each check as soon as it is answered.
        settings: values that win over the environment.

    """
    report = Report(on_check=on_check)
    system = f"{platform.system()} {platform.machine()}"
    report.ask("Python", lambda: f"{platform.python_version()} on {system}")
    loaded = report.ask("Settings", lambda: load_settings(**settings), show=_format_settings)
    if loaded is None:
        return report
    places = report.ask(
        "Services",
        lambda: resolve(loaded.values),
        show=lambda found: ", ".join(endpoint.label for endpoint in found.all),
        limit_s=ENGINES_LIMIT_S,
        if_late="`workshop stop` and try again; `workshop reset` starts the engines afresh.",
    )
    if places is None:
        return report
    try:
        # The emulation of queues is started only where it is needed.
        queues = endpoints.external_messaging(loaded.values)
        every: list[Endpoint] = [*places.all, *filter(None, (places.reader, queues))]
        if any(place.aws for place in every if place is not places.cache):  # which takes no sign-in
            _ask_identity(report, places.aws_region)
        for place in every:
            _ask_network(report, place)
        _ask_services(report, places, queues, loaded.values.workshop_namespace)
    finally:
        places.release()
    return report


def _ask_identity(report: Report, region: str | None) -> None:
    """Who AWS says we are, without the account's number: this is shown in saved notebooks."""
    label = f"the sign-in service of AWS (STS) in {region or 'us-east-1'}"
    sts = Endpoint(label, "", 443, {"region_name": region, "config": BRIEF}, aws=True)

    def ask() -> str:
        arn = aws_client("sts", sts.arguments).get_caller_identity()["Arn"]
        return "signed in as " + str(arn).rsplit(":", 1)[-1]

    report.ask("AWS identity", ask, sts)


def _ask_network(report: Report, place: Endpoint) -> None:
    """Name, port and certificate, up to the first that is not as it should be."""
    if place.host.startswith("/"):  # a socket in the file system
        return
    of = f"of {place.label} at {place.address}"
    late = "The name server of this machine does not answer. Does it have a network?"
    known = place.embedded or report.ask(f"Name {of}", lambda: _look_up(place), place, if_late=late)
    if known and report.ask(f"Port {of}", lambda: _knock(place), place) and place.tls:
        report.ask(f"Certificate {of}", lambda: _shake_hands(place), place)


def _ask_services(
    report: Report, places: Endpoints, queues: endpoints.MessagingEndpoint | None, namespace: str
) -> None:
    """Whether each of them does what the notebooks need."""
    database, reader, cache, store = places.database, places.reader, places.cache, places.store
    if make := database.token:
        said = "made locally, {} characters (not shown)"
        report.ask("Sign-in token for the database", make, show=lambda one: said.format(len(one)))
    report.ask("Database answers", lambda: _database(database, namespace), database)
    if reader:
        report.ask("Database for reads answers", lambda: _database(reader, namespace), reader)
    report.ask("Cache answers", lambda: _cache(cache), cache)
    report.ask("Object store is writable", lambda: _store(_briefly(store), namespace), store)
    if queues:
        report.ask("Queue answers", lambda: _queue(_briefly(queues)), queues)
        report.ask("Metrics can be read", lambda: _metrics(_briefly(queues), namespace), queues)


def _look_up(endpoint: Endpoint) -> str:
    """Whether the name is known."""
    found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    number = len({address[4][0] for address in found})
    return f"{number} address{'es' * (number != 1)}"


def _knock(endpoint: Endpoint) -> str:
    """Whether something listens on the port."""
    _connect(endpoint).close()
    return "open"


def _shake_hands(endpoint: Endpoint) -> str:
    """Whether the certificate is valid for the name."""
    if endpoint.kind == "database":
        return "verified by the database client when it connects"
    how = endpoint.arguments
    context = ssl.create_default_context(cafile=how.get("ssl_ca_certs") or endpoints.ca_bundle())
    context.check_hostname = how.get("ssl_check_hostname", True)
    with _connect(endpoint) as raw:
        raw.settimeout(ANSWER_S)
        with context.wrap_socket(raw, server_hostname=endpoint.host) as secured:
            return f"valid, {secured.version()}"


def _connect(endpoint: Endpoint) -> socket.socket:
    # Each address of a name is waited for in turn.
    return socket.create_connection((endpoint.host, endpoint.port), timeout=ANSWER_S / 2)


def _briefly(endpoint: E) -> E:
    """The same place on AWS, for clients that wait for an answer once and not for long."""
    given: Config = endpoint.arguments["config"]
    return replace(endpoint, arguments={**endpoint.arguments, "config": given.merge(BRIEF)})


def _within(limit_s: float, question: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """The answer, or the error, to a question; a TimeoutError if none comes in time."""
    found: list[tuple[Any, Exception | None]] = []

    def work() -> None:
        try:
            found.append((question(), None))
        except Exception as error:  # noqa: BLE001 -- whatever it is, it becomes a ✗
            found.append((None, error))

    # A daemon, because a question that hangs in the system cannot be called off.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    return found[0] if found else (None, TimeoutError(f"no answer within {limit_s:g} s"))


def _format_settings(loaded: LoadedSettings) -> str:
    given = [f"{n.upper()} from {source}" for n, source in loaded.sources.items()]
    return "; ".join(one for one in given if not one.endswith(" argument")) or "all defaults"


def _database(endpoint: endpoints.DatabaseEndpoint, namespace: str) -> str:
    with closing(Database(endpoint, namespace, pool_min=1, pool_max=1)) as database:
        statement = "SELECT version(), current_setting('transaction_isolation')"
        ((name, isolation),) = database.query(statement)
        return f"{' '.join(str(name).split()[:2])}, {isolation}"


def _cache(endpoint: endpoints.CacheEndpoint) -> str:
    with closing(redis.Redis(**endpoint.arguments)) as client:
        name = greet_cache(client, endpoint)
        memory: Any = client.info("memory")
        limit, used = (int(memory.get(part, 0)) / 2**20 for part in ("maxmemory", "used_memory"))
        most = f"{limit:.0f} MiB" if limit else "no limit of its own"
        return f"{name}, {memory.get('maxmemory_policy', '?')}, {used:.1f} MiB used, {most}"


def _store(store: endpoints.StoreEndpoint, namespace: str) -> str:
    with closing(store_client(store)) as client:
        found, region = greet_store(client, store), store.arguments["region_name"]
        if store.aws and found and found != region:
            raise SettingsError(
                f"The bucket {store.bucket!r} is in {found}, not in {region} where AWS_REGION says "
                "that everything is. Correct AWS_REGION, or take a bucket in that Region for "
                "BUCKET_NAME."
            )
        one = {"Bucket": store.bucket, "Key": f"{namespace}/check-{time.time_ns()}"}
        client.put_object(**one, Body=BODY)
        back = client.get_object(**one)["Body"].read()
        client.delete_object(**one)
        if back != BODY:
            raise RuntimeError("what was read is not what was written")
        return f"bucket {store.bucket}: an object written, read back and deleted"


def _queue(endpoint: endpoints.MessagingEndpoint) -> str:
    with closing(messaging_client(endpoint, "sqs")) as client:
        return describe_queue(client, endpoint)


def _metrics(endpoint: endpoints.MessagingEndpoint, namespace: str) -> str:
    where, now = metrics_namespace(namespace), datetime.now(UTC)
    metric = {"Namespace": where, "MetricName": "DURATION"}
    query = {"Id": "check", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Sum"}}
    with closing(messaging_client(endpoint, "cloudwatch")) as client:
        start = now - timedelta(minutes=5)
        client.get_metric_data(MetricDataQueries=[query], StartTime=start, EndTime=now)
        return f"of {where}, the namespace of its load tests"
