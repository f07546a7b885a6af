"""The `workshop` command: understood or refused in one message, and nothing started needlessly."""

import errno
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing

import psycopg2
import pytest
import redis
from click.testing import CliRunner, Result

from workshop_lib import course, results
from workshop_lib.cli import main
from workshop_lib.dataset import list_objects
from workshop_lib.namespaces import wipe_namespace
from workshop_lib.paths import CHECKOUT, display_path
from workshop_lib.services import exports
from workshop_lib.services.state_folder import StateFolder, state_folder


@pytest.fixture
def workshop() -> Iterator:
    """Runs a command in this process; the process's own signal handling is put back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*words: str) -> Result:
        done = CliRunner().invoke(main, list(words), prog_name="workshop")
        assert isinstance(done.exception, SystemExit | None), done.exception
        return done

    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def nowhere(tmp_path, monkeypatch) -> StateFolder:
    """A state folder in which nothing has been started."""
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "state"))
    return state_folder(tmp_path / "state")


def test_every_command_explains_itself_and_starts_nothing(workshop, nowhere):
    names = [(), *((name,) for name in main.commands)]
    names += [(group, name) for group in ("load", "aws") for name in main.commands[group].commands]
    for words in names:
        done = workshop(*words, "--help")
        assert done.exit_code == 0
        assert done.output.startswith(f"Usage: workshop {' '.join(words)}".rstrip())
    assert workshop("-h").output == workshop("--help").output
    assert not nowhere.path.parent.exists()


def python(code: str, *, redirect: str = "") -> str:
    """What Python prints, and says, in a process of its own."""
    command = f'exec "$0" -c "$1" {redirect}'
    words = ["sh", "-c", command, sys.executable, code]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_counts_as_ctrl_c_but_not_under_nohup(ignored):
    found = python(
        f"""
import signal
if {ignored}:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from workshop_lib.cli import main
main(["rules", "--help"], standalone_mode=False)
main.callback()
print(signal.getsignal(signal.SIGHUP) is signal.default_int_handler)
"""
    )
    assert found.splitlines()[-1] == str(not ignored)


def test_nobody_answers_where_the_standard_input_is_closed(nowhere):
    nowhere.path.mkdir(parents=True)
    code = """
import sys
sys.argv = ["workshop", "reset", "--local"]
from workshop_lib.__main__ import main
main()
"""
    found = python(code, redirect="<&-")
    assert found.splitlines()[-1].endswith("[y/N]: Aborted!")
    assert nowhere.path.exists()


@pytest.mark.parametrize("setting", ["AWS_MAX_ATTEMPTS", "AWS_ENDPOINT_URL"])
def test_a_setting_that_boto3_cannot_use_is_one_sentence(workshop, monkeypatch, setting):
    monkeypatch.setenv(setting, "nonsense")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    done = workshop("aws", "status")
    assert done.exit_code == 1
    assert done.output.startswith("Error: boto3 cannot use its configuration: ")


def test_a_full_disk_is_one_sentence(workshop, nowhere, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("workshop_lib.services.local.status", full)
    done = workshop("status")
    assert (done.exit_code, done.output.splitlines()) == (1, [done.output.strip()])
    assert done.output.startswith("Error: No space left on device.")


# --- requests that are refused ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "99"], "There is no notebook '99'. There are:\n  00_check_the_deployment\n"),
        (["lab", "02_cach"], "There is no notebook '02_cach'. There are:"),
        (["run", "00", "-p", "no_such=1"], "No chosen notebook has a parameter 'no_such'"),
        (["run", "--size", "huge"], "'huge' is not one of 'quick', 'full'"),
        (["run", "--workers", "0"], "0 is not in the range 1<=x<=16"),
        (["dance"], "No such command 'dance'"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_and_nothing_is_started(
    workshop, nowhere, words, said
):
    done = workshop(*words)
    assert done.exit_code in {1, 2}
    assert said in done.output
    assert "Traceback" not in done.output
    assert not nowhere.path.parent.exists()
    assert "The local engines are not running" in workshop("status").output


@pytest.mark.parametrize("command", ["env", "lab", "run", "check"])
def test_an_unusable_setting_is_one_clear_message(workshop, nowhere, monkeypatch, command):
    monkeypatch.setenv("VALKEY_TTL", "soon")
    done = workshop(command)
    wrong = "A setting is not usable. VALKEY_TTL='soon' (from environment): Input should be a"
    assert (done.exit_code, wrong in done.output, "Traceback" in done.output) == (1, True, False)
    assert not nowhere.path.parent.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("AWS_ENDPOINT_URL_S3", "http://h:1"), ("WORKSHOP_CONFIG", "none"), ("VALKEY_TLL", "5")],
)
def test_whatever_the_settings_are_one_can_look_stop_and_reset(
    workshop, nowhere, monkeypatch, name, value
):
    monkeypatch.setenv(name, value)
    for words in ("--help", "list", "status", "stop"):
        done = workshop(words)
        assert (done.exit_code, name in done.output) == (0, False)
    nowhere.prepare()
    done = workshop("reset", "--yes")
    assert (done.exit_code, name in done.output) == (0, True)
    assert "Services of your own are left alone." in done.output
    assert not nowhere.path.exists()


def test_stop_finds_the_state_folder_of_a_file_in_which_something_else_is_wrong(
    workshop, nowhere, monkeypatch, tmp_path
):
    monkeypatch.delenv("WORKSHOP_STATE_DIR")
    monkeypatch.setenv("WORKSHOP_CONFIG", str(tmp_path / "workshop.toml"))
    (tmp_path / "workshop.toml").write_text(
        f"colour = 1\nworkshop_state_dir = '{nowhere.path.parent}'"
    )
    assert f"(their state: {nowhere.path})" in workshop("status").output


def test_a_terminal_without_some_characters_is_shown_the_others(nowhere, monkeypatch):
    monkeypatch.setenv("VALKEY_TTL", "soon")
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    done = subprocess.run(
        [sys.executable, "-m", "workshop_lib", "check"],
        capture_output=True,
        encoding="latin-1",
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "\n? Settings " in done.stdout


# --- the local engines ---


def test_status_shows_engines_with_their_ports_and_who_uses_them(ws, workshop):
    lines = workshop("status").output.splitlines()
    for name, endpoint in zip(("postgres", "valkey", "s3"), ws.endpoints.all, strict=True):
        (line,) = [line for line in lines if line.startswith(name)]
        assert line.split()[1:3] == ["up", endpoint.address]
    assert any(line.startswith("used by: ") and "pid" in line for line in lines)


def test_where_nothing_was_started_nothing_is_and_that_is_no_error(workshop, nowhere):
    for words, said in {
        ("status",): f"The local engines are not running (their state: {nowhere.path}).\n",
        ("stop",): "No local engines were running.\n",
        ("reset", "--yes"): "There was nothing to reset.\n",
    }.items():
        done = workshop(*words)
        assert (done.exit_code, done.output) == (0, said)
    assert not nowhere.path.parent.exists()


def test_reset_asks_first_and_then_deletes_the_state(workshop, nowhere):
    nowhere.prepare()
    secrets = nowhere.secrets()
    asked = workshop("reset")
    assert asked.exit_code == 1
    assert f"Delete the local engines and their data in {nowhere.path}?" in asked.output
    assert nowhere.secrets() == secrets
    assert workshop("reset", "--yes").output.startswith("Reset.")
    nowhere.prepare()
    assert nowhere.secrets() != secrets


@pytest.fixture
def not_local(ws, monkeypatch, tmp_path) -> pytest.MonkeyPatch:
    """Settings under which the running engines are somebody's own servers."""
    for name, value in exports(ws.settings, ws.endpoints).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORKSHOP_NAMESPACE", f"{ws.namespace}_mine")
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "state"))
    return monkeypatch


def test_reset_deletes_only_its_own_part_of_services_that_are_not_local(ws, workshop, not_local):
    mine, others = f"{ws.namespace}_mine", f"{ws.namespace}_other"
    for namespace in (mine, others):
        ws.valkey.set(f"{namespace}:v3:planet:3", b"Earth")
        ws.database.query(f"CREATE SCHEMA {namespace}")
        ws.database.query(f"CREATE TABLE {namespace}.planet (id int)")
        ws.s3.put_object(Bucket=ws.bucket, Key=f"{namespace}/a", Body=b"a")
    assert mine not in workshop("reset", "--local").output  # what it would delete
    asked = workshop("reset")
    assert f"named '{mine}' in the database, the cache, the object store" in asked.output
    done = workshop("reset", "--yes")
    assert done.output.startswith("1 tables, 1 keys, 1 objects deleted.\n")
    find = "SELECT 1 FROM pg_tables WHERE schemaname = %s"
    for namespace, left in ((mine, 0), (others, 1)):
        assert len(ws.database.query(find, (namespace,))) == left
        assert ws.valkey.exists(f"{namespace}:v3:planet:3") == left
        assert len(list(list_objects(ws.s3, ws.bucket, f"{namespace}/"))) == left
    wipe_namespace(others)


def test_reset_says_so_in_a_message_when_a_service_cannot_be_cleared(workshop, not_local):
    not_local.setenv("VALKEY_URL", "redis://127.0.0.1:1")
    done = workshop("reset", "--yes")
    assert done.exit_code == 1
    assert done.output.startswith("Error: The cache at 127.0.0.1:1")


# --- how to reach the services ---


def test_env_prints_exports_that_reach_the_workshop_s_own_services(ws, workshop, monkeypatch):
    monkeypatch.setenv("WORKSHOP_NAMESPACE", ws.namespace)
    script = f'{workshop("env").stdout}\nprintf "%s " "$BUCKET_NAME" "$DATABASE_URL" "$VALKEY_URL"'
    shell = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True)
    bucket, database_url, valkey_url = shell.stdout.split()
    assert (bucket, shell.stderr) == (ws.bucket, "")
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        assert cursor.fetchone() == (ws.namespace,)
    with redis.Redis.from_url(valkey_url) as valkey:
        assert valkey.ping() is True


HANDLE = """
import logging
from types import SimpleNamespace
from workshop_lib.load.worker import handler
logging.basicConfig()  # as Lambda does
ping = {"run": "ping", "number": 0, "action": "EVENTS", "statements": 0}
handler(ping, SimpleNamespace(get_remaining_time_in_millis=lambda: 30_000))
"""


@pytest.mark.parametrize(("level", "logged"), [("", True), ("WARNING", False)])
def test_the_log_level_decides_what_a_load_function_logs(ws, monkeypatch, level, logged):
    for name, value in exports(ws.settings, ws.endpoints).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOG_LEVEL", level)
    words = [sys.executable, "-c", HANDLE]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("INFO:workshop_lib.load.worker:EVENTS: 0 of 0" in done.stderr) is logged


# --- checks ---


def test_check_as_json_parses_and_finds_everything_in_order(ws, workshop):
    done = workshop("check", "--json")
    report = json.loads(done.stdout)
    assert [c["name"] for c in report["checks"] if c["ok"] is not True] == []
    assert (report["ok"], done.exit_code) == (True, 0)
    names = [c["name"] for c in report["checks"]]
    assert names[:3] == ["Python", "Settings", "Services"]
    assert names[-3:] == ["Database answers", "Cache answers", "Object store is writable"]


# --- where a learner is ---


def test_a_path_is_short_in_the_workshop_s_folder_and_whole_elsewhere(monkeypatch, tmp_path):
    for here, shown in ((CHECKOUT, "results"), (tmp_path, str(CHECKOUT / "results"))):
        monkeypatch.chdir(here)
        assert display_path(CHECKOUT / "results") == shown


def test_the_list_says_what_was_run_and_solved_and_is_damaged_and_the_page_shows_it(
    workshop, monkeypatch, tmp_path
):
    notebooks, place = tmp_path / "notebooks", tmp_path / "interactive"
    shutil.copytree(CHECKOUT / "notebooks", notebooks)
    (damaged,) = notebooks.glob("03_*.ipynb")
    damaged.write_text("<<<<<<< HEAD\n" + damaged.read_text())
    monkeypatch.setattr("workshop_lib.course.FILE", place / "exercises.json")
    monkeypatch.setattr("workshop_lib.cli.RESULTS", tmp_path)
    monkeypatch.setattr("workshop_lib.cli.NOTEBOOKS", notebooks)
    monkeypatch.delenv("WORKSHOP_RESULT_FILE", raising=False)
    assert "No results are in" in workshop("report").output
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    course.note_solved("02.1")  # not in a notebook
    assert course.solved() == set()
    course.FILE.parent.mkdir(exist_ok=True)
    course.FILE.write_text("[" * 100_000)
    assert course.solved() == set()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    for exercise in ("02.1", "02.2", "05.1"):
        course.note_solved(exercise)
    found = results.Result("02_cache_a_query", "workshop")
    results.write_json(place / "02_cache_a_query.json", found.to_json())
    lines = workshop("list").output.splitlines()
    assert [line[:2] for line in lines if "run, 2 of" in line] == ["02"]
    assert [line[:2] for line in lines if "solved" in line] == ["02", "05"]  # not more/05
    assert [line[:2] for line in lines if "damaged" in line] == ["03"]
    assert workshop("report").output.startswith("The page of what you did: ")
    assert "02_cache_a_query" in (place / "index.html").read_text()
