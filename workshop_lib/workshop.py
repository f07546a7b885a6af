"""Open the workshop: settings, clients and the results of this run in one object."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pandas as pd
import psycopg2
import redis
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib import dataset, forks
from workshop_lib.cache.keys import match_all
from workshop_lib.cache.query_cache import clear_namespace
from workshop_lib.database import Database
from workshop_lib.dataset import Loaded, Sizes
from workshop_lib.dsql import Step, play
from workshop_lib.errors import ResultError, ServiceUnreachableError, WorkshopError
from workshop_lib.load.drivers import LambdaWorkers, LocalWorkers
from workshop_lib.load.means import Equipment
from workshop_lib.measure import FEWEST_FOR_INTERVAL, P99_SAMPLES, Samples
from workshop_lib.objects import ObjectStore, store_error
from workshop_lib.queues import delete_queues, messaging_client, open_queue
from workshop_lib.results import (
    Measurement,
    Result,
    Value,
    described,
    latest_figure,
    shown,
    write_json,
)
from workshop_lib.sandbox import Sandbox
from workshop_lib.services import (
    CacheEndpoint,
    Endpoint,
    Endpoints,
    MessagingEndpoint,
    StoreEndpoint,
    resolve,
    resolve_messaging,
    running_messaging,
)
from workshop_lib.services.client_config import plain_session, session_for
from workshop_lib.services.explain import code_of, explain, sentence
from workshop_lib.services.functions import LambdaClients
from workshop_lib.services.latency_proxy import LatencyProxy
from workshop_lib.services.state import state_folder
from workshop_lib.settings import CHECKOUT, LoadedSettings, load_settings

STAND_IN_SIGNING = {
    "region_name": "us-east-1",
    "aws_access_key_id": "stand-in",
    "aws_secret_access_key": "stand-in",
}
MOST_CACHES = 16
MOST_TIMEOUT_S = 60.0
_open: dict[str, Workshop] = {}


class Workshop:
    """One open workshop. Made by `open_workshop`.

    Attributes:
        database: the database, pooled (`query`, `run_transaction`, …).
        valkey: the cache, a redis.Redis.
        s3: the object store, a boto3 client.
        bucket: the bucket's name.
        sqs, cloudwatch: queues and metrics, boto3 clients; found (`messaging`) on first use.
        objects: this workshop's own objects in it (`get`, `put`, …).
        namespace: names the schema, and begins every cache key and object name of this workshop.
        endpoints: where the services are.
        settings: the settings in force; `loaded.origins()` says where each came from.
        result: what has been recorded so far.

    """

    def __init__(self, loaded: LoadedSettings, endpoints: Endpoints, notebook: str) -> None:
        self.loaded = loaded
        self.settings = loaded.values
        self.endpoints = endpoints
        self.namespace = self.settings.workshop_namespace
        self.default_ttl = self.settings.valkey_ttl
        self.database = Database(
            endpoints.database,
            self.namespace,
            pool_min=self.settings.dsql_pool_min,
            pool_max=self.settings.dsql_pool_max,
            pool_timeout_s=self.settings.dsql_pool_timeout,
        )
        self._proxies = {
            "database": LatencyProxy("database", endpoints.database, self.database.reroute),
            "cache": LatencyProxy("cache", endpoints.cache),
            "store": LatencyProxy("store", endpoints.store),
        }
        self.valkey = _cache_client(endpoints.cache, self._proxies["cache"])
        self.s3 = store_client(endpoints.store)
        if endpoints.store.embedded:
            self.s3.meta.events.register("before-sign.s3", partial(_steer, self._proxies["store"]))
        self.bucket = endpoints.store.bucket
        self.objects = ObjectStore(self.s3, endpoints.store, self.object_prefix)
        self.result = Result(notebook, self.namespace, _describe(endpoints))
        self._sandbox: Sandbox | None = None
        self._let_go_of_messaging: Callable[[], None] = lambda: None
        self._workers: LocalWorkers | LambdaWorkers | None = None
        self._result_file = self.settings.workshop_result_file or (
            CHECKOUT / "results" / "interactive" / f"{notebook}.json"
        )
        self._pid = os.getpid()
        forks.tell_child(self)

    def _after_fork(self) -> None:
        """In a forked process: have all clients connect anew."""
        forks.renew_cache_client(self.valkey)
        for client in ("s3", "sqs", "cloudwatch"):
            if client in vars(self):
                vars(self)[client].close()  # its connections; it opens new ones

    @property
    def object_prefix(self) -> str:
        """What the names of this workshop's objects begin with."""
        return f"{self.namespace}/"

    def connect(self, token: str | None = None) -> psycopg2.extensions.connection:
        """A new psycopg2 connection of your own, in autocommit mode: close it when done.

        Args:
            token: sign in with this one; as `Database.connect`.

        """
        return self.database.connect(token)

    def play(self, script: Iterable[Sequence[Any]]) -> list[Step]:
        """Play transactions against each other in one cell; see `plots.transactions`.

        Args:
            script: in order, who sends which statement with which values for its placeholders:
                `("Ann", "SELECT n FROM counters WHERE id = %s", 1)`; BEGIN is a statement, too.

        Returns:
            What came of each. An error of the database is noted, and the play goes on.

        """
        return play(self.connect, script)

    @cached_property
    def dsql(self) -> Any:
        """A boto3 client that makes sign-in tokens, with your credentials on AWS.

        Elsewhere with stand-in credentials: what it signs has the form of a token and opens
        nothing on AWS.
        """
        signing = self.endpoints.database.signing
        session = boto3.Session() if signing else plain_session()
        return session.client("dsql", **(signing or STAND_IN_SIGNING))

    def load_workers(
        self,
        at_once: int = 4,
        *,
        cache: Mapping[str, Any] | None = None,
        metrics: bool = False,
    ) -> LocalWorkers | LambdaWorkers:
        """Workers that do the work of load tests on this workshop's services.

        Where LOAD_FUNCTION names an AWS Lambda function they are its executions, and else processes
        on this machine: also where a cache of your own is given, which may be one on this machine,
        where no function can reach it. Their `label` says which.

        Processes have the latency that this workshop has now (`set_latency`). Executions use the
        services that the function's environment names, in this workshop's namespace. One
        set at a time: new ones end those before. All end with the workshop, or with the kernel.

        Args:
            at_once: how many: processes 1 to 64, executions 1 to 1,000.
            cache: what redis.Redis needs to reach another cache, such as a sandbox's.
            metrics: have them publish metrics to CloudWatch (`messaging`); a function does where
                its environment names a queue, as the stack's does.

        Raises:
            WorkshopError: the number is out of range, or they did not all start.

        """
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        if self.settings.load_function and cache is None:
            self._workers = self._wake(self.settings.load_function, at_once)
            return self._workers
        host, port = self._proxies["cache"].route
        own = {**self.endpoints.cache.arguments, "host": host, "port": port}
        equipment = Equipment(
            self.database.endpoint,
            self.namespace,
            reader=self.endpoints.reader,
            cache=cache or own,
            messaging=self.messaging if metrics else None,
        )
        self._workers = LocalWorkers(equipment, at_once)
        return self._workers

    @property
    def queue_function(self) -> str:
        """The AWS Lambda function that processes the queue of `open_queue`; empty if none does.

        It is the one of LOAD_FUNCTION, where the queue is that of QUEUE_URL. Workers that received
        from that queue, too, would compete with it.
        """
        return (self.settings.load_function or "") if self.settings.queue_url else ""

    @cached_property
    def messaging(self) -> MessagingEndpoint:
        """Where queues and metrics are: Amazon SQS and CloudWatch, or an emulation of both.

        The emulation is started on first use. It keeps all in memory: should it be killed, it is
        started again at the same address, and what it held is lost.

        Raises:
            EngineError: the emulation did not start.

        """
        endpoint, self._let_go_of_messaging = resolve_messaging(self.settings)
        self.result.services["messaging"] = _described(endpoint, self.endpoints.aws_region)
        return endpoint

    @cached_property
    def sqs(self) -> Any:
        """A boto3 client of the queues."""
        return messaging_client(self.messaging, "sqs")

    @cached_property
    def cloudwatch(self) -> Any:
        """A boto3 client of the metrics."""
        return messaging_client(self.messaging, "cloudwatch")

    def open_queue(
        self, name: str, *, visibility_timeout_s: int, max_receives: int
    ) -> tuple[str, str]:
        """A queue and its dead-letter queue, made if need be; again changes their settings only.

        With QUEUE_URL set it is that queue, whatever the name, as it was configured there, and
        the dead-letter queue that its redrive policy names; nothing is made.

        Args:
            name: what tells it from this workshop's other queues.
            visibility_timeout_s: how long a received message is kept from other receivers,
                0 to 43,200 seconds.
            max_receives: how often it is received before it goes to the dead-letter queue,
                1 to 1,000.

        Returns:
            Their URLs.

        Raises:
            ValueError: an argument is out of range.
            EngineError: the emulation did not start.
            ServiceUnreachableError: no answer, no such queue, or one with no dead-letter queue.

        """
        return open_queue(
            self.sqs,
            self.messaging,
            self.namespace,
            name,
            visibility_timeout_s=visibility_timeout_s,
            max_receives=max_receives,
        )

    def load_table(self, name: str, sizes: Sizes | None = None) -> Loaded:
        """Bring one of the workshop's tables to exactly these rows; again changes nothing."""
        return dataset.load_table(self.database, name, sizes)

    def load_objects(self, sizes: Sizes | None = None) -> Loaded:
        """Bring the workshop's objects in the bucket to exactly these; again changes nothing.

        Raises:
            DataError: a size is out of range, or another load has not finished for minutes.
            ServiceUnreachableError: the store did not answer, or refused us.

        """
        try:
            return dataset.load_objects(self.s3, self.bucket, self.object_prefix, sizes)
        except (ClientError, BotoCoreError) as error:
            raise store_error(error, self.objects.endpoint) from None

    def sandbox(
        self, *, database: bool = True, caches: int = 1, cache_timeout_s: float = 1.0
    ) -> Sandbox:
        """Engines of this notebook's own, to reconfigure, stop and freeze.

        They are local also where the workshop runs on AWS. One sandbox at a time: a new one ends
        the one before. All ends with the workshop, or with the kernel.

        Args:
            database: with a PostgreSQL, in whose empty schema `load_table` makes tables.
            caches: how many Valkeys.
            cache_timeout_s: how long their clients wait for an answer, seconds.

        Raises:
            ValueError: an argument is out of range.
            EngineError: the engines did not start.

        """
        if not isinstance(caches, int) or not 1 <= caches <= MOST_CACHES:
            raise ValueError(
                f"caches is {caches!r}; it must be a whole number from 1 to {MOST_CACHES}"
            )
        if not 0 < cache_timeout_s <= MOST_TIMEOUT_S:
            raise ValueError(
                f"cache_timeout_s is {cache_timeout_s}; it must be above 0 and at most "
                f"{MOST_TIMEOUT_S:g} seconds"
            )
        if self._sandbox is not None:
            self._sandbox.close()
        self._sandbox = Sandbox(
            self.settings, database=database, caches=caches, cache_timeout_s=cache_timeout_s
        )
        self.result.services.update(self._sandbox.describe())
        return self._sandbox

    @property
    def latencies(self) -> dict[str, float]:
        """The emulated round-trip time to each service now, seconds; 0 where there is none."""
        return {service: proxy.seconds for service, proxy in self._proxies.items()}

    def set_latency(
        self,
        *,
        database: float | None = None,
        cache: float | None = None,
        store: float | None = None,
    ) -> None:
        """Add latency to services, as if a network lay between; others keep theirs.

        A proxy holds back each reply by the round-trip time; connecting takes one more. It is for
        this workshop's own clients (`database`, `valkey`, `s3` and all that was made with them),
        from their next question on; other notebooks notice nothing. A connection of your own from
        `connect()` goes the way that was in force when it was made. Every plot that is drawn
        meanwhile says so, and the result keeps the latencies that were in force.

        Args:
            database, cache, store: the round-trip time, 0 to 0.4 seconds; 0 for none.

        Raises:
            ValueError: a time is out of range; nothing was changed.
            WorkshopError: the service is not a local engine; nothing was changed.
            EngineError: the proxy did not start.

        """
        given = {"database": database, "cache": cache, "store": store}
        asked = {service: seconds for service, seconds in given.items() if seconds is not None}
        for service, seconds in asked.items():
            self._proxies[service].check(seconds)
        try:
            for service, seconds in asked.items():
                self._proxies[service].set(seconds)
        finally:
            self._note_latency()

    @contextmanager
    def at_latency(
        self,
        *,
        database: float | None = None,
        cache: float | None = None,
        store: float | None = None,
    ) -> Iterator[None]:
        """`set_latency` for the length of a with block; what was before is in force after it.

        Draw the plots of what you measure within the block: then they carry the latency.
        """
        before = self.latencies
        try:
            self.set_latency(database=database, cache=cache, store=store)
            yield
        finally:
            self.set_latency(**before)

    def possible_latencies(self, latencies: Iterable[float]) -> list[float]:
        """Those of some latencies that can be set here; the others become 0, and that is said.

        A service on AWS, or of your own, has a latency of its own, to which none can be added.

        Args:
            latencies: round-trip times in seconds.

        """
        asked = list(latencies)
        real = [endpoint.label for endpoint in self.endpoints.all if not endpoint.embedded]
        if not real or not any(asked):
            return asked
        left_out = ", ".join(f"{seconds * 1e3:g} ms" for seconds in asked if seconds)
        print(  # noqa: T201 -- for whoever reads the notebook
            f"Skipped: an emulated latency of {left_out}. It can be added to local engines only. "
            f"{', '.join(real)}: what is measured is their real latency."
        )
        return [0.0] * len(asked)

    @property
    def result_folder(self) -> Path:
        """Where this run's results go."""
        return self._result_file.parent

    def record(
        self,
        name: str,
        value: Value,
        unit: str = "",
        n: int = 1,
        interval: tuple[float, float] | None = None,
    ) -> None:
        """Keep a figure under a name: for the summary, the report and comparisons.

        Args:
            name: for example "hit_p50".
            value: a number, a text or a truth value.
            unit: "s", "µs", "rows", …; "" for a pure number.
            n: how many samples stand behind it.
            interval: its ends, in the same unit.

        Raises:
            WorkshopError: this process was forked since the workshop was opened.

        """
        if self._pid != os.getpid():
            raise WorkshopError(
                "This process was forked since the workshop was opened: its figures would replace "
                "the parent's. Return them to the parent, and record them there."
            )
        low, high = interval or (None, None)
        self.result.record(name, Measurement(value, unit, n, low, high))
        try:
            write_json(self._result_file, self.result.to_json())
        except ResultError as error:
            # A full or read-only disk should not end a lesson: the figure is kept in memory.
            warnings.warn(str(error), stacklevel=2)

    def record_samples(self, name: str, samples: Samples) -> None:
        """Keep p50 (with its interval), p95, p99, mean, minimum and maximum of samples, in µs."""
        n = len(samples)
        low, high = (end * 1e6 for end in samples.interval(50))
        interval = (low, high) if n >= FEWEST_FOR_INTERVAL else None
        self.record(f"{name}_p50", samples.median * 1e6, "µs", n, interval)
        for q in (95, 99) if n >= P99_SAMPLES else (95,):
            self.record(f"{name}_p{q}", samples.percentile(q) * 1e6, "µs", n)
        self.record(f"{name}_mean", samples.mean * 1e6, "µs", n)
        self.record(f"{name}_min", min(samples.seconds) * 1e6, "µs", n)
        self.record(f"{name}_max", max(samples.seconds) * 1e6, "µs", n)

    def recorded(self, name: str) -> Value:
        """The value recorded under a name in this notebook.

        Raises:
            KeyError: nothing was; the text lists the names that are known.

        """
        found = self.result.measurements.get(name)
        if found is None:
            known = ", ".join(self.result.measurements) or "none yet"
            raise KeyError(f"nothing is recorded under {name!r}; recorded: {known}")
        return found.value

    def summary(self, pattern: str = "") -> pd.DataFrame:
        """What was recorded in this notebook, ready to read: one row a figure.

        Args:
            pattern: a regular expression; only figures whose name it matches are shown.

        """
        chosen = {n: m for n, m in self.result.measurements.items() if re.search(pattern, n)}
        return pd.DataFrame(
            [
                {
                    "value": shown(m.value),
                    "unit": m.unit,
                    "95 % interval": "" if m.low is None else f"{shown(m.low)} – {shown(m.high)}",
                    "samples": f"{m.n:,}",
                }
                for m in chosen.values()
            ],
            index=list(chosen),
        )

    def figure_of(self, notebook: str, name: str) -> Value | None:
        """The newest value that another notebook measured here under this name, if any did.

        This run's own comes first, wherever its results go.
        """
        found = latest_figure(CHECKOUT / "results", notebook, name, first=self.result_folder)
        return found[0].value if found else None

    def inventory(self) -> dict[str, int]:
        """How many tables, cache keys and objects of this workshop there are now."""
        pattern = match_all(self.namespace)
        return {
            "tables": len(dataset.list_tables(self.database)),
            "keys": sum(1 for _ in self.valkey.scan_iter(match=pattern, count=500)),
            "objects": sum(
                1 for _ in dataset.list_objects(self.s3, self.bucket, self.object_prefix)
            ),
        }

    @property
    def tables(self) -> pd.DataFrame:
        """The workshop's tables that are there, with their rows."""
        return dataset.count_tables(self.database)

    def clear_cache(self) -> int:
        """Delete this workshop's own cache keys. Returns how many there were."""
        return clear_namespace(self.valkey, self.namespace)

    def wipe(self, *, of_others: bool = False) -> dict[str, int]:
        """Delete this workshop's own tables, keys, objects and queues, and nothing else.

        Args:
            of_others: also tables of other names that are in its schema.

        Returns:
            How many tables, keys and objects there were.

        """
        tables = dataset.drop_everything(self.database, of_others=of_others)
        found = list(dataset.list_objects(self.s3, self.bucket, self.object_prefix))
        for name in found:
            self.s3.delete_object(Bucket=self.bucket, Key=name)
        self._delete_queues()
        return {"tables": len(tables), "keys": self.clear_cache(), "objects": len(found)}

    def close(self) -> None:
        """Close all connections and let go of the local engines. Doing it twice is harmless."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None
        if self._sandbox is not None:
            self._sandbox.close()
        for proxy in self._proxies.values():
            proxy.close()
        self._note_latency()
        self.database.close()
        self.valkey.close()
        self.s3.close()
        for client in ("sqs", "cloudwatch"):
            if client in vars(self):
                getattr(self, client).close()
        self._let_go_of_messaging()
        self.endpoints.release()

    def _repr_html_(self) -> str:
        rows = [
            {"service": kind, "what it is": info["label"], "version": info["version"]}
            for kind, info in self.result.services.items()
        ]
        return str(pd.DataFrame(rows).to_html(index=False))

    def _delete_queues(self) -> None:
        """Delete this workshop's queues; an emulation that does not run has none."""
        running = running_messaging(self.settings)
        if running is None:
            return
        endpoint, release = running
        try:
            delete_queues(messaging_client(endpoint, "sqs"), endpoint, self.namespace)
        finally:
            release()

    def _wake(self, function: str, at_once: int) -> LambdaWorkers:
        """Executions of a function, ready.

        Raises:
            WorkshopError: it does not answer.

        """
        clients = LambdaClients(self.endpoints.aws_region, at_once)
        workers = LambdaWorkers(clients, function, at_once, self.namespace)
        try:
            workers.wake()
        except BaseException as error:
            workers.close()
            if not isinstance(error, WorkshopError):
                raise
            raise WorkshopError(
                f"{error} LOAD_FUNCTION (or the stack) names this function; "
                'open_workshop(…, load_function="") has processes on this machine do the work.'
            ) from None
        return workers

    def _note_latency(self) -> None:
        """Have the result keep, and the plots say, which latencies are emulated."""
        latencies = self.latencies
        self.result.note_latency(latencies)
        note = described({service: seconds * 1e3 for service, seconds in latencies.items()})
        if note or "workshop_lib.plots" in sys.modules:
            # Not at the top: matplotlib takes a second that few openings need to spend.
            from workshop_lib import plots  # noqa: PLC0415

            plots.set_note(id(self), note and f"emulated latency: {note}")

    def _greet(self) -> None:
        """Make sure that all three services answer; note their versions; make schema and bucket.

        Raises:
            ServiceUnreachableError: one does not answer or refuses us.

        """
        services = self.result.services
        version = self.database.query("SHOW server_version")[0][0]
        services["database"]["version"] = f"PostgreSQL {version}"
        dataset.create_schema(self.database)
        services["cache"]["version"] = greet_cache(self.valkey, self.endpoints.cache)
        greet_store(self.s3, self.endpoints.store)


def open_workshop(
    notebook: str = "interactive", needs: Iterable[str] = (), **settings: Any
) -> Workshop:
    """Open the workshop, starting the local engines if need be. The one set-up call of a notebook.

    Calling it again with the same notebook name closes the first workshop and starts its results
    afresh.

    In a process that was forked since, the workshop's clients connect anew. What is the parent's
    alone refuses there: connections borrowed or opened before, worker processes, latencies and
    results. The parent notices nothing of the child, nor of its end.

    Args:
        notebook: the name under which results are kept.
        needs: tables that have to be there and filled; "objects" for the objects in the bucket.
        settings: values that win over the environment, for example valkey_ttl=5.

    Raises:
        SettingsError: a setting is not usable.
        EngineError: a local engine did not start.
        ServiceUnreachableError: a service does not answer.

    """
    loaded = load_settings(**settings)
    if notebook in _open:
        _open.pop(notebook).close()
    workshop = _open_with(loaded, notebook)
    try:
        workshop._greet()
        for name in needs:
            if name == "objects":
                workshop.load_objects()
            else:
                dataset.ensure_table(workshop.database, name)
    except BaseException:
        workshop.close()
        raise
    _open[notebook] = workshop
    return workshop


def _open_with(loaded: LoadedSettings, notebook: str) -> Workshop:
    endpoints = resolve(loaded.values)
    try:
        return Workshop(loaded, endpoints, notebook)
    except BaseException:
        endpoints.release()  # else the engines would be held until this process ends
        raise


def abandoned_namespaces() -> list[str]:
    """The namespaces of runs that were killed; none while another process may still run one.

    Raises:
        WorkshopError: a service does not answer.

    """
    loaded = load_settings(workshop_linger_seconds=0.0)
    folder = state_folder(loaded.values.workshop_state_dir)
    endpoints = resolve(loaded.values)
    database = Database(endpoints.database, pool_min=1)
    try:
        others = {lease["pid"] for lease in folder.live_leases()} - {os.getpid()}
        if others or not endpoints.database.embedded:
            return []
        found = database.query(
            "SELECT nspname FROM pg_namespace WHERE nspname ~ %s", ("^run_[0-9a-f]{8}_",)
        )
        return [str(name) for (name,) in found]
    finally:
        database.close()
        endpoints.release()


def wipe_namespace(namespace: str) -> dict[str, int]:
    """Delete a run's namespace: tables, keys and objects. Returns how many of each there were.

    A run has it to itself, so whatever table is there goes, also one that a changed cell made.

    Raises:
        WorkshopError: a service does not answer.

    """
    loaded = load_settings(workshop_namespace=namespace, workshop_linger_seconds=0.0)
    workshop = _open_with(loaded, "wipe")
    try:
        workshop._greet()  # nothing may have been made yet, not even the bucket
        return workshop.wipe(of_others=True)
    finally:
        workshop.close()


def greet_cache(valkey: redis.Redis, endpoint: CacheEndpoint) -> str:
    """Ask the cache for its version.

    Raises:
        ServiceUnreachableError: it does not answer or refuses us.

    """
    try:
        info: Any = valkey.info("server")
    except redis.RedisError as error:
        about = "No answer from the cache"
        if isinstance(error, redis.AuthenticationError):
            about = "Refused by the cache"
        raise ServiceUnreachableError(
            f"{about} at {endpoint.address} ({endpoint.label}): {sentence(error)} "
            f"{explain(error, endpoint)}"
        ) from None
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis-compatible {info.get('redis_version', '?')}"


def store_client(endpoint: StoreEndpoint) -> Any:
    """A boto3 S3 client for the endpoint.

    Raises:
        ServiceUnreachableError: the configuration of AWS does not allow for one.

    """
    try:
        return session_for(endpoint).client("s3", **endpoint.arguments)
    except BotoCoreError as error:
        raise store_error(error, endpoint) from None


def greet_store(s3: Any, endpoint: StoreEndpoint) -> str:
    """Make sure that the bucket is there, creating the local one.

    Returns:
        The Region that it is in; empty where the store does not say.

    Raises:
        ServiceUnreachableError: the store does not answer, refuses us, or has no such bucket.

    """
    try:
        if endpoint.create_bucket:
            with contextlib.suppress(
                s3.exceptions.BucketAlreadyOwnedByYou, s3.exceptions.BucketAlreadyExists
            ):
                s3.create_bucket(Bucket=endpoint.bucket)
        return _bucket_region(s3, endpoint.bucket)
    except (ClientError, BotoCoreError) as error:
        raise store_error(error, endpoint) from None


def _bucket_region(s3: Any, bucket: str) -> str:
    try:
        found = s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        if code_of(error) in {"400", "403"}:
            # The answer to a HEAD has no room for the reason. A list takes the same permission.
            s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
        raise
    return str(found.get("BucketRegion", ""))


class _RoutedConnection(redis.Connection):
    """A connection that goes by a proxy's present route, from its next borrower on."""

    def __init__(self, *, proxy: LatencyProxy, **arguments: Any) -> None:
        self._proxy = proxy
        super().__init__(**arguments)  # type: ignore[no-untyped-call]  # here and below: redis-py's

    def connect(self) -> None:
        """Connect if need be; the pool asks for it whenever it lends the connection."""
        route = self._proxy.route
        if (self.host, self.port) != route:
            self.disconnect()  # type: ignore[no-untyped-call]
            self.host, self.port = route
        if not self.is_connected:
            super().connect()  # type: ignore[no-untyped-call]


def _cache_client(endpoint: CacheEndpoint, proxy: LatencyProxy) -> redis.Redis:
    client = redis.Redis(**endpoint.arguments)
    if endpoint.embedded:
        given = client.connection_pool
        client.connection_pool = redis.ConnectionPool(
            connection_class=_RoutedConnection,
            max_connections=given.max_connections,
            proxy=proxy,
            **given.connection_kwargs,
        )
    return client


def _steer(proxy: LatencyProxy, request: Any, **_: Any) -> None:
    """Send a request by the proxy's route. Before it is signed: the address is in the signature."""
    host, port = proxy.route
    request.url = urlsplit(request.url)._replace(netloc=f"{host}:{port}").geturl()


def _describe(endpoints: Endpoints) -> dict[str, dict[str, Any]]:
    """The services as a result file keeps them: never an address's credentials."""
    named = zip(("database", "cache", "store"), endpoints.all, strict=True)
    return {kind: _described(endpoint, endpoints.aws_region) for kind, endpoint in named}


def _described(endpoint: Endpoint, region: str | None) -> dict[str, Any]:
    return {
        "label": endpoint.label,
        "version": "",
        "embedded": endpoint.embedded,
        "emulated": endpoint.emulated,
        "aws": endpoint.aws,
        "region": region,
    }
