"""The load worker as a Lambda function: the package, and what it does where nothing else is."""

import hashlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import boto3
import psycopg2
import pytest
from tenacity import wait_fixed

from workshop_lib import dataset
from workshop_lib.errors import SettingsError, WorkshopError
from workshop_lib.load import drivers, package as packages
from workshop_lib.load.drivers import LambdaWorkers
from workshop_lib.load.inserts import count_by_worker, count_rows, run_inserts
from workshop_lib.load.jobs import Ping, to_event
from workshop_lib.load.package import HANDLER, RUNNING, build_package, find_rooms
from workshop_lib.load.scenario import Storm
from workshop_lib.paths import CHECKOUT
from workshop_lib.services import exports
from workshop_lib.services.functions import LambdaClients
from workshop_lib.services.named import named_database
from workshop_lib.settings import load_settings

sys.path.append(str(Path(__file__).parent))  # the stand-in is no part of the package
from lambda_runtime import HERE, LambdaService, build

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Lambda's runtime is for Linux")

WAIT_S = 20
CLUSTER = "abc.dsql.us-east-1.on.aws"
NAME = f"lambda-{os.getpid()}"
"""By this the database knows the functions' connections."""
ROLE = {"AWS_ACCESS_KEY_ID": "of-the-role", "AWS_SECRET_ACCESS_KEY": "of-the-role"}
PROBE = """
import json, sys
sys.path.append(sys.argv[1])
from workshop_lib.load.worker import handler
from workshop_lib.services.named import named_database
from workshop_lib.settings import load_settings
endpoint = named_database(load_settings().values)
print(json.dumps({
    "handler": handler.__module__,
    "token": endpoint.token(),
    "versions": {name: getattr(m, "__version__", "") for name, m in sys.modules.items()
                 if isinstance(getattr(m, "__version__", ""), str)},
    "modules": {name: getattr(module, "__file__", None) for name, module in sys.modules.items()},
}))
"""
CLIENTS = """
import sys
sys.path.append(sys.argv[1])
import boto3
for name in sys.argv[2:]:
    print(boto3.client(name, region_name="us-east-1").meta.service_model.service_name)
"""


@pytest.fixture
def start(ws, task, runtime, tmp_path, monkeypatch):
    """Start a function whose environment names the local database, and a driver that calls it."""
    for name, value in ROLE.items():
        monkeypatch.setenv(name, value)
    dataset.create_schema(ws.database)
    dataset.create_table(ws.database, "business_events")
    before = fingerprint(task)
    service = LambdaService(
        task,
        runtime,
        tmp_path,
        {"DATABASE_URL": url(ws), "WORKSHOP_NAMESPACE": ws.namespace},
        handler=HANDLER,
    )

    def start(at_once=None, namespace="", **changes):
        for name, value in changes.items():
            setattr(service, name, value)
        clients = LambdaClients("us-east-1", at_once or service.most, service.url)
        driver = LambdaWorkers(clients, service.name, at_once or service.most, namespace)
        opened.append(driver)
        return service, driver

    opened = []
    yield start
    for driver in opened:
        driver.close()
    service.close()
    inits = [f"{e.init_seconds:.2f}" for e in service.environments if e.init_seconds]
    sys.stdout.write(f"cold starts: {', '.join(inits)} s\n{service.logs()}\n")
    assert not any(e.alive for e in service.environments)
    assert fingerprint(task) == before
    assert list(service.scratch.iterdir()) == []
    wait_for(lambda: not connections(ws))


def url(ws):
    """The local database's address, with a name by which its connections can be told."""
    return f"{exports(ws.settings, ws.endpoints)['DATABASE_URL']}&application_name={NAME}"


def connections(ws, waiting="%"):
    """The connections of functions, by process of the server."""
    rows = ws.database.query(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s "
        "AND coalesce(wait_event_type, '') LIKE %s",
        (NAME, waiting),
    )
    return [pid for (pid,) in rows]


def wait_for(condition):
    end = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)
    return found


def fingerprint(folder):
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


def storm(ws, driver, **what):
    report = run_inserts(ws.database, Storm(**what), driver, progress=False)
    assert report.reconciles
    assert report.planned == report.succeeded + report.failed + report.dropped
    return report


def alone(task, program, *words, **environment):
    """Run a program that can import the package and the standard library, and nothing else."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", program, str(task), *words],
        cwd=task,
        env=ROLE | {"AWS_REGION": "us-east-1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def held_up(ws, worker, number):
    """Hold up a worker in its statement of this number, once the run's name is known."""
    address = f"{url(ws)}-blocker"
    with closing(psycopg2.connect(address)) as blocker, blocker.cursor() as cursor:
        cursor.execute("SET workshop.dsql_rules = 'off'")

        def block(event):
            if event["worker"] == worker:
                key = f"{event['run']}/{worker:05d}/{number:07d}/0000"
                cursor.execute(
                    "INSERT INTO business_events (id, event_name, event_type, created_date, "
                    "saved_date, event_data) VALUES (%s, 'x', 'x', now(), now(), '{}')",
                    (key,),
                )

        yield block
        # A server works on after its client has died: it must not store the row after all.
        for pid in connections(ws, "Lock"):
            cursor.execute("SELECT pg_terminate_backend(%s)", (pid,))
        blocker.rollback()


# The package


def test_the_package_says_what_is_in_it(built):
    with zipfile.ZipFile(built.path) as archive:
        entries = archive.infolist()
    assert built.path.stat().st_size == built.zipped < packages.MOST_ZIPPED
    assert sum(e.file_size for e in entries) == built.unzipped < packages.MOST_UNZIPPED
    assert len(entries) == built.files
    assert built.python == RUNNING
    assert built.architecture == HERE
    assert max(built.largest, key=built.largest.get) == next(iter(built.largest))
    assert "sqlalchemy" in built.largest
    assert f"Python {RUNNING} on {HERE}" in str(built)
    assert list(built.path.parent.iterdir()) == [built.path]


def test_the_package_holds_the_worker_and_nothing_of_the_workshop_that_it_does_not_import(built):
    with zipfile.ZipFile(built.path) as archive:
        names = archive.namelist()
    ours = {n for n in names if n.startswith("workshop_lib/") and n.endswith(".py")}
    modules = {n.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for n in ours}
    assert modules == find_rooms()
    assert "workshop_lib.load.worker" in modules
    unwanted = (
        "workshop_lib/exercises",
        "workshop_lib/templates",
        "workshop_lib/plots",
        "notebooks",
    )
    assert [n for n in names if n.startswith(unwanted)] == []
    assert {"workshop_lib/__init__.pyi", "workshop_lib/load/__init__.pyi"} <= set(names)
    assert not [n for n in names if ".dist-info/" in n or "/tests/" in n or n.startswith("bin/")]


def test_files_in_the_package_are_in_order_and_carry_no_time_of_their_own(built):
    with zipfile.ZipFile(built.path) as archive:
        entries = archive.infolist()
    assert [e.filename for e in entries] == sorted(e.filename for e in entries)
    assert {e.date_time for e in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {e.external_attr >> 16 for e in entries} == {0o100644}


def test_the_same_input_gives_the_same_bytes(built, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "DISTRIBUTIONS", ("tenacity", "lazy-loader", "hiredis"))
    monkeypatch.setattr(packages, "FOR_OLD_PYTHONS", "")
    digests = set()
    for number in range(2):
        found = build(tmp_path / f"{number}.zip", HERE)
        digests.add(hashlib.sha256(found.path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_third_party_packages_are_those_the_workshop_pins(task):
    lines = (CHECKOUT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split(" ")[0].split("==") for line in lines if not line.startswith("#"))
    assert set(packages.DISTRIBUTIONS) <= set(pins)
    found = json.loads(alone(task, PROBE, DSQL_ENDPOINT=CLUSTER))["versions"]
    known = {"boto3", "botocore", "certifi", "psutil", "pydantic", "sqlalchemy", "urllib3"}
    assert {name: found[name] for name in known} == {name: pins[name] for name in known}


def test_the_handler_imports_nothing_but_the_package_and_python(task):
    found = json.loads(alone(task, PROBE, DSQL_ENDPOINT=CLUSTER))
    assert found["handler"] == "workshop_lib.load.worker"
    # Signing a token reads botocore's data, of which only a part is there.
    assert found["token"].startswith(f"{CLUSTER}/?Action=DbConnectAdmin")
    files = {name: path for name, path in found["modules"].items() if path}
    strange = {n: p for n, p in files.items() if not p.startswith((str(task), sys.base_prefix))}
    assert strange == {}
    tops = {name.split(".")[0] for name, path in files.items() if path.startswith(str(task))}
    by_distribution = importlib.metadata.packages_distributions()
    used = {d.lower().replace("_", "-") for top in tops for d in by_distribution.get(top, [])}
    assert set(packages.DISTRIBUTIONS) - used == set()


def test_the_services_that_were_kept_in_botocore_have_clients(task):
    kept = sorted(packages.AWS_SERVICES)
    assert alone(task, CLIENTS, *kept).split() == kept


def test_each_service_that_is_kept_in_botocore_exists():
    assert set(boto3.Session().get_available_services()) >= packages.AWS_SERVICES


def test_code_is_compiled_for_this_python_so_that_no_cold_start_compiles_it(built):
    with zipfile.ZipFile(built.path) as archive:
        names = set(archive.namelist())
    compiled = f"workshop_lib/load/__pycache__/worker.{sys.implementation.cache_tag}.pyc"
    assert compiled in names


@pytest.mark.parametrize(
    ("architecture", "python", "chosen"),
    [
        ("arm64", "3.11", "manylinux2014_aarch64"),
        # Amazon Linux 2023 runs what needs a newer C library, too.
        ("x86_64", "3.13", "manylinux_2_28_x86_64"),
    ],
)
def test_wheels_are_those_that_lambda_can_run(tmp_path, monkeypatch, architecture, python, chosen):
    for platform_tag in ("manylinux2014", "manylinux_2_28", "manylinux_2_35", "macosx_14_0"):
        for machine in ("x86_64", "aarch64"):
            make_wheel(tmp_path / "wheels", python.replace(".", ""), f"{platform_tag}_{machine}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(packages, "DISTRIBUTIONS", ("psutil",))
    monkeypatch.setattr(packages, "FOR_OLD_PYTHONS", "")
    found = build_package(tmp_path / "x.zip", architecture=architecture, python=python)
    with zipfile.ZipFile(found.path) as archive:
        assert archive.read("psutil/__init__.py").decode() == f"platform = {chosen!r}\n"
        compiled = [n for n in archive.namelist() if n.endswith(".pyc")]
    assert bool(compiled) == (python == RUNNING)


def make_wheel(folder, python, platform_tag):
    """A wheel of psutil in the pinned version, which says what platform it is for."""
    text = (CHECKOUT / "constraints.txt").read_text()
    (version,) = re.findall(r"^psutil==(\S+)", text, re.MULTILINE)
    tag = f"cp{python}-cp{python}-{platform_tag}"
    notes = f"psutil-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"psutil-{version}-{tag}.whl", "w") as archive:
        archive.writestr("psutil/__init__.py", f"platform = {platform_tag!r}\n")
        archive.writestr(
            f"{notes}/METADATA", f"Metadata-Version: 2.1\nName: psutil\nVersion: {version}\n"
        )
        archive.writestr(
            f"{notes}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n"
        )
        archive.writestr(f"{notes}/RECORD", "")


def test_an_architecture_that_lambda_does_not_have_is_refused(tmp_path):
    with pytest.raises(WorkshopError, match="There are: x86_64, arm64"):
        build_package(tmp_path / "x.zip", architecture="mips")


def test_a_wheel_that_cannot_be_had_is_said_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(WorkshopError, match=r"for Python 3\.\d+ on Linux, arm64, could not be had"):
        build_package(tmp_path / "x.zip", architecture="arm64")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", ["MOST_ZIPPED", "MOST_UNZIPPED"])
def test_a_package_that_lambda_would_refuse_is_not_written(tmp_path, monkeypatch, limit, built):
    monkeypatch.setattr(packages, "DISTRIBUTIONS", ("psutil",))
    monkeypatch.setattr(packages, "FOR_OLD_PYTHONS", "")
    monkeypatch.setattr(packages, limit, 100_000)
    how = limit.removeprefix("MOST_").lower()
    with pytest.raises(WorkshopError, match=rf"MB {how}; Lambda takes 0\.1 MB\. .*psutil"):
        build_package(tmp_path / "x.zip", architecture=HERE)
    assert list(tmp_path.iterdir()) == []


# The function


def test_a_storm_by_lambda_functions_stores_exactly_the_planned_rows(ws, start):
    service, driver = start()
    report = storm(ws, driver, workers=4, iterations=5, statements=2, rows=3, warm_up=1)
    assert (report.succeeded, report.failed, report.dropped) == (120, 0, 0)
    assert report.workers_succeeded == 4
    assert report.errors == ()
    assert count_by_worker(ws.database, report.run) == dict.fromkeys(range(4), 30)
    assert count_rows(ws.database, report.run) == 123  # with the warm-up's
    assert len(report.statements) == 40
    assert len(service.environments) == 2


def test_a_second_invocation_uses_the_connection_of_the_first(ws, start):
    service, driver = start(most=1)
    storm(ws, driver, workers=1, iterations=3)
    first = connections(ws)
    storm(ws, driver, workers=2, iterations=3)
    assert connections(ws) == first
    assert len(first) == 1
    assert len(service.environments) == 1


def test_what_is_no_job_comes_back_as_the_workers_own_words(ws, start):
    def spoil(event):
        if event["worker"] == 1:
            event["job"] = "dance"

    service, driver = start(on_event=spoil)
    report = storm(ws, driver, workers=2, iterations=4)
    assert (report.succeeded, report.failed, report.dropped) == (4, 4, 0)
    assert (report.workers_succeeded, report.workers_failed) == (1, 1)
    assert report.errors[0].startswith(
        "WorkshopError: The function load-worker failed: This is no job for a load worker: "
    )
    # It was not the environment's fault: both are there for more.
    again = storm(ws, driver, workers=1, iterations=4)
    assert again.succeeded == 4
    assert len(service.environments) == 2


def test_a_function_that_is_killed_in_mid_job_leaves_a_report_that_reconciles(ws, start):
    with held_up(ws, worker=1, number=10) as block:
        service, driver = start(on_event=block)

        def kill():
            wait_for(lambda: connections(ws, "Lock"))
            (one,) = [e for e in service.working() if e.event["worker"] == 1]
            one.process.send_signal(signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        report = storm(ws, driver, workers=2, iterations=20, rows=5)
        killer.join()
    assert (report.succeeded, report.failed, report.dropped) == (150, 50, 0)
    assert report.unreported == 50
    assert (report.workers_succeeded, report.workers_failed) == (1, 1)
    assert "Runtime exited with error: signal: SIGKILL" in report.errors[0]
    assert count_by_worker(ws.database, report.run) == {0: 100, 1: 50}
    # The next invocation gets a new environment.
    service.on_event = lambda _: None
    assert storm(ws, driver, workers=2, iterations=2).succeeded == 4


def test_a_function_that_hangs_until_its_time_is_over_is_counted_by_what_the_table_has(ws, start):
    with held_up(ws, worker=1, number=3) as block:
        service, driver = start(on_event=block, timeout_s=4)
        report = storm(ws, driver, workers=2, iterations=4)
    assert (report.succeeded, report.failed, report.dropped) == (7, 1, 0)
    assert report.unreported == 3
    assert "Task timed out after 4.00 seconds" in report.errors[0]
    assert sum(e.alive for e in service.environments) == 1


def test_a_function_begins_no_statement_that_its_time_would_not_allow(ws, start):
    service, driver = start(timeout_s=3)
    report = storm(ws, driver, workers=2, iterations=1_000_000)
    assert report.errors == ()
    assert report.failed == 0
    assert 0 < report.succeeded < report.planned
    assert report.dropped == report.planned - report.succeeded
    assert len(report.statements) == report.succeeded
    assert all(e.alive for e in service.environments)


def test_an_interrupt_lets_functions_that_have_begun_end_and_begins_no_more(ws, start):
    service, driver = start()
    main = threading.main_thread().ident

    def interrupt():
        wait_for(lambda: len(service.working()) == 2)
        signal.pthread_kill(main, signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    report = storm(ws, driver, workers=5, iterations=100_000, time_limit_s=1.5)
    interrupter.join()
    assert report.interrupted
    assert report.failed == 0
    assert service.calls == 2
    assert len(report.invocations) == 2
    assert not service.working()


@pytest.fixture
def no_room(ws, start, monkeypatch):
    """A function of which one execution may run, and that one is held up until it is let go."""
    monkeypatch.setattr(drivers, "THROTTLED_WAIT", wait_fixed(0.1))
    with held_up(ws, worker=0, number=0) as block:
        service, driver = start(on_event=block, most=1, at_once=3)

        def let_go():
            for pid in connections(ws, "Lock"):
                ws.database.query("SELECT pg_cancel_backend(%s)", (pid,))

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(storm, ws, driver, workers=1, iterations=1)
            wait_for(lambda: connections(ws, "Lock"))
            service.on_event = lambda _: None
            yield service, driver, let_go
            let_go()
            assert first.result().failed == 1
    assert len(service.environments) == 1


def test_an_invocation_for_which_there_is_no_room_is_tried_again_until_there_is(no_room):
    service, driver, let_go = no_room
    waiting = [driver.start(to_event(Ping()), 60) for _ in range(2)]
    wait_for(lambda: service.calls > 5)
    assert not any(one.done() for one in waiting)
    let_go()
    assert [one.result(WAIT_S) for one in waiting] == [{"ready": True, "memory_mb": 512}] * 2


def test_an_invocation_for_which_there_is_never_room_is_given_up_in_words(no_room):
    service, driver, _ = no_room
    refused = driver.start(to_event(Ping()), 0.5)
    with pytest.raises(WorkshopError, match=r"TooManyRequestsException.*Rate Exceeded"):
        refused.result(WAIT_S)
    assert 2 < service.calls < 10


def test_an_interrupt_ends_the_wait_for_room_and_what_waited_is_dropped(no_room, ws):
    service, driver, _ = no_room
    waiting = driver.start(to_event(Ping()), 60)
    wait_for(lambda: service.calls > 2)
    waiting.cancel()
    with pytest.raises(CancelledError):
        waiting.result(WAIT_S)
    known = service.calls
    time.sleep(0.3)
    assert service.calls == known


@pytest.mark.parametrize("at_once", [0, 1_001, "2"])
def test_a_number_of_executions_out_of_range_is_refused(at_once):
    with pytest.raises(WorkshopError, match="from 1 to 1,000"):
        LambdaWorkers(LambdaClients("us-east-1", 1), "f", at_once)


def test_a_function_that_is_not_told_its_database_says_so(ws, start):
    service, driver = start()
    del service.environment["DATABASE_URL"]
    with pytest.raises(WorkshopError, match="set DSQL_ENDPOINT in the function's environment"):
        driver.start(to_event(Ping()), 5).result()


def test_a_function_whose_handler_cannot_be_imported_says_so(ws, start):
    service, driver = start(handler="workshop_lib.load.worker_of_old.handler")
    with pytest.raises(WorkshopError, match="Unable to import module"):
        driver.start(to_event(Ping()), 5).result()
    wait_for(lambda: not any(e.alive for e in service.environments))


def test_a_function_that_does_not_exist_is_an_error_in_words(ws, start):
    service, _ = start()
    with LambdaWorkers(LambdaClients("us-east-1", 1, service.url), "nobody", 1) as driver:
        answer = driver.start(to_event(Ping()), 5)
        with pytest.raises(WorkshopError, match=r"The function nobody gave no answer.*not found"):
            answer.result()


def test_a_client_outwaits_the_job_and_calls_the_function_once(clean_environment):
    for name, value in ROLE.items():
        clean_environment.setenv(name, value)
    with closing(LambdaClients("us-east-1", 250)) as clients:
        for limit_s in (0.3, 89, 90, 91, 900):
            manners = clients.patient(limit_s).meta.config
            assert limit_s < manners.read_timeout <= limit_s + 150
            assert manners.retries["total_max_attempts"] == 1
            assert manners.max_pool_connections == 250
        assert clients.patient(60) is clients.patient(90)


def test_no_engine_is_started_for_a_worker_that_is_told_no_database(clean_environment, tmp_path):
    state = tmp_path / "state"
    settings = load_settings(workshop_state_dir=state).values
    with pytest.raises(SettingsError, match="not told which database"):
        named_database(settings)
    assert not state.exists()
