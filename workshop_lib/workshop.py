"""Open the workshop: settings, clients and the results of this run in one object.

What only some notebooks need is imported where it is used, so that opening stays quick.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg2
import redis
from botocore.exceptions import BotoCoreError, ClientError

from workshop_lib import dataset, forks  # dataset: its modules, each on first use
from workshop_lib.database import Database
from workshop_lib.errors import ResultError, WorkshopError
from workshop_lib.objects import ObjectStore, greet_store, steer, store_client, store_error
from workshop_lib.paths import RESULTS
from workshop_lib.results import (
    Measurement,
    Value,
    describe_service,
    format_latency,
    format_value,
    new_result,
    write_json,
)
from workshop_lib.services import (
    DatabaseEndpoint,
    Endpoints,
    MessagingEndpoint,
    aws_client,
    resolve,
    resolve_cluster,
    resolve_messaging,
)
from workshop_lib.services.cache_client import greet_cache, reroute_cache
from workshop_lib.services.latency_proxy import LatencyProxy
from workshop_lib.settings import Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd

    from workshop_lib.dataset import Loaded, Sizes
    from workshop_lib.dsql import Step
    from workshop_lib.load.drivers import LambdaWorkers, LocalWorkers
    from workshop_lib.measure import Samples
    from workshop_lib.sandbox import Sandbox

T = TypeVar("T")
MAX_CACHES = 16
MAX_TIMEOUT_S = 60.0
_open: dict[str, Workshop] = {}


class Workshop:
    """One open workshop. Made by `open_workshop`.

    Attributes:
        database: the database, pooled (`query`, `run_transaction`, …).
        valkey: the cache, a redis.Redis.
        s3: the object store, a boto3 client.
        bucket: the bucket's name.
        sqs, local_sqs, cloudwatch: queues and metrics, boto3 clients; found (`messaging`) on first
            use.
        objects: this workshop's own objects in it (`get`, `put`, …).
        namespace: names the schema, and begins every cache key and object name of this workshop.
        endpoints: where the services are.
        settings: the settings in force.
        result: what has been recorded so far.
        object_prefix: what the names of this workshop's objects begin with.

    """

    def __init__(self, settings: Settings, endpoints: Endpoints, notebook: str) -> None:
        self.settings = settings
        self.endpoints = endpoints
        self.namespace = self.settings.workshop_namespace
        self.object_prefix = f"{self.namespace}/"
        self.default_ttl = self.settings.valkey_ttl
        self.database = Database(endpoints.database, self.namespace, **self.settings.pool)
        self.valkey = redis.Redis(**endpoints.cache.arguments)
        self._proxies = {
            "database": LatencyProxy("database", endpoints.database, self.database.reroute),
            "cache": LatencyProxy("cache", endpoints.cache, partial(reroute_cache, self.valkey)),
            "store": LatencyProxy("store", endpoints.store),
        }
        self.s3 = store_client(endpoints.store)
        if endpoints.store.embedded:
            self.s3.meta.events.register("before-sign.s3", partial(steer, self._proxies["store"]))
        self.bucket = endpoints.store.bucket
        self.objects = ObjectStore(self.s3, endpoints.store, self.object_prefix)
        self.result = new_result(notebook, self.namespace)
        for kind, endpoint in zip(("database", "cache", "store"), endpoints.all, strict=True):
            self.result.services[kind] = describe_service(endpoint, endpoints.aws_region)
        self._result_file = self.settings.workshop_result_file or (
            RESULTS / "interactive" / f"{notebook}.json"
        )
        self._pid = os.getpid()
        self._sandbox: Sandbox | None = None
        self._workers: LocalWorkers | LambdaWorkers | None = None
        self._exit = ExitStack()
        for one in (endpoints.release, self.s3.close, self.valkey.close, self.database.close):
            self._exit.callback(one)
        self._exit.callback(self._note_latency)
        for proxy in self._proxies.values():
            self._exit.callback(proxy.close)
        forks.tell_child(self)

    def _after_fork(self) -> None:
        """In a forked process: have all clients connect anew."""
        forks.renew_cache_client(self.valkey)
        for client in ("s3", "sqs", "local_sqs", "cloudwatch"):
            if client in vars(self):
                vars(self)[client].close()  # its connections; it opens new ones

    def database_arguments(self, user: str = "admin", *, direct: bool = False) -> dict[str, Any]:
        """What psycopg2.connect, and so any client of PostgreSQL, needs to reach Aurora DSQL.

        With a fresh token as the password. Where the database is the local engine, it is the local
        Aurora DSQL, which is started on first use: TLS, tokens and DSQL's dialect before the same
        data. `database` goes to the engine directly.

        Args:
            user: `admin`, or on the local engine a role that may log in.
            direct: on the local engine, past the local Aurora DSQL: for timing, since its checks
                take time of their own. On AWS it makes no difference.

        Raises:
            EngineError: the local Aurora DSQL did not start.

        """
        if self.endpoints.database.embedded and not direct:
            return self._cluster.login(user)
        return {**self.endpoints.database.login(), **self._route("database")}

    def cache_arguments(self) -> dict[str, Any]:
        """What redis.Redis needs to reach the cache, with the latency that is set now."""
        return {**self.endpoints.cache.arguments, **self._route("cache")}

    def store_arguments(self) -> dict[str, Any]:
        """What boto3.client("s3") needs to reach the store, with the latency that is set now."""
        arguments = dict(self.endpoints.store.arguments)
        if route := self._route("store"):
            arguments["endpoint_url"] = "http://{host}:{port}".format(**route)
        return arguments

    def _route(self, service: str) -> dict[str, Any]:
        """Host and port of a local engine: those of its latency proxy while a latency is set."""
        if not self._proxies[service].endpoint.embedded:
            return {}
        host, port = self._proxies[service].route
        return {"host": host, "port": port}

    @cached_property
    def _cluster(self) -> DatabaseEndpoint:
        cluster, release = resolve_cluster(self.settings)
        self._exit.callback(release)
        return cluster

    def run_interleaved(self, script: Iterable[Sequence[Any]]) -> list[Step]:
        """Run transactions against each other in one cell; see `plots.transactions`.

        They meet Aurora DSQL, or the local one (`database_arguments`): no transaction waits there.

        Args:
            script: in order, who sends which statement with which values for its placeholders:
                `("Ann", "SELECT n FROM counters WHERE id = %s", 1)`; BEGIN is a statement as well.

        Returns:
            The outcome of each. An error of the database is noted, and the rest goes on.

        """
        from workshop_lib.dsql import run_interleaved

        return run_interleaved(self._join_interleaved, script)

    def _join_interleaved(self) -> Any:
        if not self.endpoints.database.embedded:
            return self.database.connect()
        connection: Any = psycopg2.connect(**self.database_arguments())
        connection.autocommit = True
        with connection.cursor() as cursor:
            name = psycopg2.extensions.quote_ident(self.namespace, cursor)
            cursor.execute(f"SET search_path = {name}")
        return connection

    @cached_property
    def dsql(self) -> Any:
        """A boto3 client that makes sign-in tokens, with your credentials on AWS.

        For the local engine with the access key that the local Aurora DSQL takes, and for a server
        of your own with stand-in credentials: what those sign has the form of a token and opens
        nothing.
        """
        return aws_client("dsql", self.endpoints.database.signing)

    def load_workers(
        self,
        at_once: int = 4,
        *,
        metrics: bool = False,
    ) -> LocalWorkers | LambdaWorkers:
        """Workers that do the work of load tests on this workshop's services.

        Where LOAD_FUNCTION names an AWS Lambda function they are its executions, and else processes
        on this machine. Their `label` says which.

        Processes have the latency that this workshop has now (`set_latency`). Executions use the
        services that the function's environment names, in this workshop's namespace. One
        set at a time: new ones end those before. All end with the workshop, or with the kernel.

        Args:
            at_once: how many: processes 1 to 64, executions 1 to 1,000.
            metrics: have them publish metrics to CloudWatch (`messaging`); a function does where
                its environment names a queue, as the stack's does.

        Raises:
            WorkshopError: the number is out of range, or they did not all start.

        """
        from workshop_lib.load.drivers import open_workers

        if self._workers is not None:
            self._workers.close()
        self._workers = None
        self._workers = open_workers(self, at_once, metrics=metrics)
        self._exit.callback(self._workers.close)
        return self._workers

    @property
    def queue_function(self) -> str:
        """The AWS Lambda function that processes the queue of `open_queue`; empty if none does.

        It is the one of LOAD_FUNCTION, where the queue is that of QUEUE_URL. Workers that received
        from that queue as well would compete with it.
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
        endpoint, release = resolve_messaging(self.settings)
        self._exit.callback(release)
        self.result.services["messaging"] = describe_service(endpoint, self.endpoints.aws_region)
        return endpoint

    @cached_property
    def sqs(self) -> Any:
        """A boto3 client of the queues."""
        return self._client(self.messaging, "sqs")

    @cached_property
    def local_sqs(self) -> Any:
        """A boto3 client of the emulated SQS, also where QUEUE_URL names a queue of Amazon's.

        For queues to play with, which no Lambda function empties. Delete them yourself.
        """
        if self.messaging.emulated:
            return self.sqs
        endpoint, release = resolve_messaging(self.settings.model_copy(update={"queue_url": None}))
        self._exit.callback(release)
        return self._client(endpoint, "sqs")

    @cached_property
    def cloudwatch(self) -> Any:
        """A boto3 client of the metrics."""
        return self._client(self.messaging, "cloudwatch")

    def _client(self, endpoint: MessagingEndpoint, service: str) -> Any:
        from workshop_lib.queues import messaging_client

        client = messaging_client(endpoint, service)
        self._exit.callback(client.close)
        return client

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
            EngineError: the emulation did not start.
            ServiceUnreachableError: no answer, no such queue, one with no dead-letter queue, or
                an argument is out of range.

        """
        from workshop_lib.queues import open_queue

        return open_queue(
            self.sqs,
            self.messaging,
            self.namespace,
            name,
            visibility_timeout_s=visibility_timeout_s,
            max_receives=max_receives,
        )

    def load_table(self, name: str, sizes: Sizes | None = None) -> Loaded:
        """Bring one of the workshop's tables to exactly these rows; again changes nothing.

        Raises:
            DataError: an unknown table; another load of it has not finished for minutes, or has
                taken over since this one stood still; or another program wrote to it meanwhile.

        """
        return dataset.load_table(self.database, name, sizes)

    def load_objects(self, sizes: Sizes | None = None) -> Loaded:
        """Bring the workshop's objects in the bucket to exactly these; again changes nothing.

        They are called `filename1.txt`, `filename2.txt` and so on. All others stay as they are.

        Raises:
            DataError: a size is out of range, or another load has not finished for minutes.
            ServiceUnreachableError: the store did not answer, or refused us.

        """
        return _at_store(self, dataset.load_objects, sizes)

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
        from workshop_lib.sandbox import Sandbox

        if caches not in range(1, MAX_CACHES + 1):
            raise ValueError(
                f"caches is {caches!r}; it must be a whole number from 1 to {MAX_CACHES}"
            )
        if not 0 < cache_timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(
                f"cache_timeout_s is {cache_timeout_s}; it must be above 0 and at most "
                f"{MAX_TIMEOUT_S:g} seconds"
            )
        if self._sandbox is not None:
            self._sandbox.close()
        self._sandbox = Sandbox(
            self.settings, database=database, caches=caches, cache_timeout_s=cache_timeout_s
        )
        self._exit.callback(self._sandbox.close)
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
        from their next question on; other notebooks notice nothing. A connection of your own
        (`database.connect()`) goes the way that was in force when it was made. Every plot that is
        drawn meanwhile says so, and the result keeps the latencies that were in force.

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
    def at_latency(self, **seconds: float) -> Iterator[None]:
        """`set_latency` for the length of a with block; what was before is in force after it.

        Draw the plots of what you measure within the block: then they carry the latency.
        """
        before = self.latencies
        try:
            self.set_latency(**seconds)
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
        print(  # noqa: T201 -- for the reader of the notebook
            f"Skipped: an emulated latency of {left_out}. It can be added to local engines only. "
            f"{', '.join(real)}: what is measured is their real latency."
        )
        return [0.0] * len(asked)

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
        measured = Measurement(value, unit, n, *(interval or (None, None)))
        self.result.measurements[name] = measured
        try:
            write_json(self._result_file, self.result.to_json())
        except ResultError as error:
            # A full or read-only disk should not end a lesson: the figure is kept in memory.
            warnings.warn(str(error), stacklevel=2)

    def record_samples(self, name: str, samples: Samples) -> None:
        """Keep p50 (with its interval), p95, p99, mean, minimum and maximum of samples, in µs."""
        from workshop_lib.measure import MIN_FOR_INTERVAL, P99_SAMPLES

        n, (low, high) = len(samples), samples.interval(50)
        interval = (low * 1e6, high * 1e6) if n >= MIN_FOR_INTERVAL else None
        self.record(f"{name}_p50", samples.median * 1e6, "µs", n, interval)
        percents = (95, 99) if n >= P99_SAMPLES else (95,)
        figures = {f"p{percent}": samples.percentile(percent) for percent in percents}
        figures |= {"mean": samples.mean, "min": min(samples.seconds), "max": max(samples.seconds)}
        for what, seconds in figures.items():
            self.record(f"{name}_{what}", seconds * 1e6, "µs", n)

    def summary(self, pattern: str = "") -> pd.DataFrame:
        """What was recorded in this notebook, ready to read: one row a figure.

        Args:
            pattern: a regular expression; only figures whose name it matches are shown.

        """
        import pandas as pd

        chosen = {n: m for n, m in self.result.measurements.items() if re.search(pattern, n)}
        rows = []
        for m in chosen.values():
            ends = " – ".join(format_value(end) for end in (m.low, m.high) if end is not None)
            rows.append((format_value(m.value), m.unit, ends, f"{m.n:,}"))
        columns = ["value", "unit", "95 % interval", "samples"]
        return pd.DataFrame(rows, index=list(chosen), columns=columns)

    def inventory(self) -> dict[str, int]:
        """How many tables, cache keys and objects of this workshop there are now."""
        from workshop_lib.cache.keys import match_all

        keys = self.valkey.scan_iter(match=match_all(self.namespace), count=500)
        objects = dataset.list_objects(self.s3, self.bucket, self.object_prefix)
        return {
            "tables": len(dataset.list_tables(self.database)),
            "keys": sum(1 for _ in keys),
            "objects": sum(1 for _ in objects),
        }

    @property
    def tables(self) -> pd.DataFrame:
        """The workshop's tables that are there, with their rows."""
        return dataset.count_tables(self.database)

    def clear_cache(self) -> int:
        """Delete this workshop's own cache keys. Returns how many there were."""
        from workshop_lib.cache.query_cache import clear_namespace

        return clear_namespace(self.valkey, self.namespace)

    def wipe(self) -> dict[str, int]:
        """Delete this workshop's own tables, keys, objects and queues, and nothing else.

        Returns:
            How many tables, keys and objects there were.

        Raises:
            WorkshopError: a service does not answer.

        """
        from workshop_lib.queues import delete_own_queues

        tables = dataset.drop_everything(self.database)
        objects = list(dataset.list_objects(self.s3, self.bucket, self.object_prefix))
        for name in objects:
            self.s3.delete_object(Bucket=self.bucket, Key=name)
        delete_own_queues(self.settings)
        return {"tables": len(tables), "keys": self.clear_cache(), "objects": len(objects)}

    def close(self) -> None:
        """Close all connections and let go of the local engines. Doing it twice is harmless."""
        self._exit.close()

    def _repr_html_(self) -> str:
        from workshop_lib.html_table import html_table

        services = self.result.services.items()
        rows = [(kind, found["label"], found["version"]) for kind, found in services]
        return html_table(("service", "what it is", "version"), rows)

    def _note_latency(self) -> None:
        """Have the result keep, and the plots say, which latencies are emulated."""
        latencies = self.latencies
        self.result.note_latency(latencies)
        note = format_latency({service: seconds * 1e3 for service, seconds in latencies.items()})
        if note or "workshop_lib.plots" in sys.modules:
            from workshop_lib import plots

            plots.set_note(id(self), note and f"emulated latency: {note}")


def open_workshop(
    notebook: str = "interactive", needs: Iterable[str] = (), **settings: Any
) -> Workshop:
    """Open the workshop, starting the local engines if need be. The one set-up call of a notebook.

    Calling it again with the same notebook name closes the first workshop and starts its results
    afresh.

    In a process that was forked since, the workshop's clients connect anew. What is the parent's
    alone refuses there: connections borrowed or opened before, worker processes and results. A
    latency stays, and can be set anew. The parent notices nothing of the child, nor of its end.

    Args:
        notebook: the name under which results are kept.
        needs: tables that have to be there and filled; "objects" for the objects in the bucket.
            A finished load of any size is left alone.
        settings: values that win over the environment, for example valkey_ttl=5.

    Raises:
        SettingsError: a setting is not usable.
        EngineError: a local engine did not start.
        ServiceUnreachableError: a service does not answer.

    """
    values = load_settings(**settings).values
    if notebook in _open:
        _open.pop(notebook).close()
    endpoints = resolve(values)
    with ExitStack() as on_error:
        on_error.callback(endpoints.release)  # else the engines would be held
        workshop = Workshop(values, endpoints, notebook)
        on_error.callback(workshop.close)
        services, database = workshop.result.services, workshop.database
        version = database.query("SHOW server_version")[0][0]
        services["database"]["version"] = f"PostgreSQL {version}"
        database.create_schema()
        services["cache"]["version"] = greet_cache(workshop.valkey, endpoints.cache)
        greet_store(workshop.s3, endpoints.store)
        for name in needs:
            if name == "objects":
                _at_store(workshop, dataset.ensure_objects)
            else:
                dataset.ensure_table(database, name)
        on_error.pop_all()
    _open[notebook] = workshop
    return workshop


def _at_store(workshop: Workshop, load: Callable[..., T], *arguments: object) -> T:
    try:
        return load(workshop.s3, workshop.bucket, workshop.object_prefix, *arguments)
    except (ClientError, BotoCoreError) as error:
        raise store_error(error, workshop.objects.endpoint) from None
