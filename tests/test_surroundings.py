"""What is set in the shell, or configured at home, changes nothing for the local engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from workshop_lib.paths import CHECKOUT
from workshop_lib.services import local
from workshop_lib.services.state_folder import NAME, state_folder

NOWHERE = "http://127.0.0.1:9"
ODD = "a b'\"\\ $HOME `x` #é 日本\nc"
LIBPQ = """
    SERVICE SERVICEFILE PASSFILE CHANNELBINDING CONNECT_TIMEOUT CLIENTENCODING OPTIONS SSLMODE
    SSLCERT SSLROOTCERT REQUIREAUTH GSSENCMODE TARGETSESSIONATTRS TZ DATESTYLE GEQO USER PASSWORD
    DATABASE HOST PORT
"""
VALID_LIBPQ = {
    "PGSSLMODE": "require",
    "PGHOSTADDR": "203.0.113.1",
    "PGTZ": "Asia/Tokyo",
    "PGDATESTYLE": "German",
    "PGCLIENTENCODING": "LATIN1",
    "PGOPTIONS": "-c default_transaction_isolation=serializable",
    "PGTARGETSESSIONATTRS": "standby",
    "PGREQUIREAUTH": "none",
    "PGGEQO": "off",
}
AWS = """
    PROFILE DEFAULT_PROFILE USE_FIPS_ENDPOINT USE_DUALSTACK_ENDPOINT MAX_ATTEMPTS RETRY_MODE
    REQUEST_CHECKSUM_CALCULATION DEFAULTS_MODE SESSION_TOKEN STS_REGIONAL_ENDPOINTS DEFAULT_REGION
    AUTH_SCHEME_PREFERENCE DATA_PATH CA_BUNDLE ACCESS_KEY_ID
"""
ENDPOINTS = ("", "_SQS", "_CLOUDWATCH", "_DSQL", "_STS")
PROXIES = {
    name: NOWHERE
    for word in ("http_proxy", "https_proxy", "all_proxy")
    for name in (word, word.upper())
} | dict.fromkeys(("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), "/no")
USE = """
import json
import boto3, psycopg2, redis
from workshop_lib import open_workshop
ws = open_workshop("surroundings")
shown = ("TimeZone", "DateStyle", "client_encoding", "geqo", "transaction_isolation")
values = [ws.database.query(f"SHOW {name}")[0][0] for name in shown]
values.append(ws.sandbox().database.query("SHOW TimeZone")[0][0])
ws.objects.put("a", b"1")
values.append(ws.objects.get("a").body.decode())
# As a notebook does it by hand.
own = boto3.client("s3", **ws.store_arguments())
values.append(own.get_object(Bucket=ws.bucket, Key=ws.object_prefix + "a")["Body"].read().decode())
values.append(redis.Redis(**ws.cache_arguments()).ping())
for direct in (True, False):
    own = psycopg2.connect(**ws.database_arguments(direct=direct))
    with own, own.cursor() as cursor:
        cursor.execute("SELECT 'é', date '2026-11-29'")
        values += map(str, cursor.fetchone())
    own.close()
queue, _ = ws.open_queue("q", visibility_timeout_s=1, max_receives=1)
ws.sqs.send_message(QueueUrl=queue, MessageBody="x")
values.append(ws.sqs.receive_message(QueueUrl=queue)["Messages"][0]["Body"])
ws.cloudwatch.list_metrics()
token = ws.dsql.generate_db_connect_admin_auth_token("h", "us-east-1")
values.append("nonsense" not in token and "Security-Token" not in token)
values.append(ws.load_workers(1).label)
ws.wipe()
ws.close()
print(json.dumps(values))
"""
FOUND = [
    *("UTC", "ISO, MDY", "UTF8", "on", "repeatable read", "UTC", "1", "1", True),
    *("é", "2026-11-29") * 2,
    *("x", True, "1 process on this machine"),
]
REVOKED = """
-----BEGIN X509 CRL-----
MIGEMDgCAQEwBQYDK2VwMAwxCjAIBgNVBAMMAXgXDTI2MDEwMTAwMDAwMFoYDzIw
OTkwMTAxMDAwMDAwWjAFBgMrZXADQQAXCuK7dEq6ptLecWqgtiU8fJSSr+qJiJpi
AqaBpcNsC5U7X6/tkiCAEzyjLxhVXYJCKBVTWtJbuf0S2NPCrNwD
-----END X509 CRL-----
"""
"""Certificates that another authority has revoked: none."""
DRAW = """
import hashlib, matplotlib
from workshop_lib import plots
{before}
shown = []
plots.display = shown.append
before = dict(matplotlib.rcParams)
plots.show(plots.bars({{"é": [1, 2]}}, ["x", "y"], "$t", "x", "y"), "two bars")
assert dict(matplotlib.rcParams) == before
print(hashlib.sha256(shown[0].png).hexdigest())
"""


def run(*words: str, **environment: str) -> list[str]:
    """The lines that Python prints, run by a shell with these variables."""
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "WORKSHOP_RESULT_FILE": os.devnull, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout.splitlines()


def ask(code: str, **environment: str) -> str:
    """The last line that a program prints."""
    return run("-c", code, **environment)[-1]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """A home folder whose files would break, or divert, every client that read them."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\ns3 =\n  addressing_style = nonsense\n[")
    (tmp_path / ".aws" / "credentials").write_text("[broken")
    (tmp_path / ".pg_service.conf").write_text("[nosuch]\nhost=203.0.113.1\nsslmode=require\n")
    (tmp_path / ".pgpass").write_text("*:*:*:*:wrong\n")
    (tmp_path / ".postgresql").mkdir()
    for name in ("root.crt", "postgresql.crt", "postgresql.key"):
        (tmp_path / ".postgresql" / name).write_text("nonsense")
    (tmp_path / ".postgresql" / "root.crl").write_text(REVOKED)
    model = tmp_path / ".aws" / "models" / "s3" / "2006-03-01" / "service-2.json"
    model.parent.mkdir(parents=True)
    model.write_text("nonsense")
    return {"HOME": str(tmp_path)}


@pytest.mark.parametrize(
    "hostile",
    [
        {f"PG{name}": "nonsense" for name in LIBPQ.split()} | PROXIES,
        {
            **VALID_LIBPQ,
            **{f"AWS_{name}": "nonsense" for name in AWS.split()},
            **{f"AWS_ENDPOINT_URL{name}": NOWHERE for name in ENDPOINTS},
        },
    ],
    ids=["nonsense", "valid for others"],
)
def test_the_local_engines_answer_alike_in_any_shell_and_home(home, hostile):
    assert json.loads(ask(USE, **home, **hostile)) == FOUND


def test_the_engines_that_a_hostile_shell_started_serve_a_clean_one(tmp_path):
    folder = state_folder(tmp_path)
    own = {"WORKSHOP_STATE_DIR": str(tmp_path), "WORKSHOP_LINGER_SECONDS": "60"}
    hostile = {"PGSSLMODE": "require", "PGSERVICE": "nosuch", "LC_ALL": "nonsense", **PROXIES}
    code = (
        "from workshop_lib import open_workshop; ws = open_workshop('a');"
        "print(ws.database.query('SELECT 1')[0][0]); ws.close()"
    )
    try:
        assert ask(code, **own, **hostile) == "1"
        before = local.status(folder).supervisor_pid
        assert before is not None
        assert not psutil.Process(before).environ().keys() & {*hostile, "WORKSHOP_LINGER_SECONDS"}
        assert ask(code, **own) == "1"
        assert local.status(folder).supervisor_pid == before
    finally:
        local.reset(folder)


def test_any_name_of_a_folder_will_do(tmp_path):
    place = tmp_path / ODD
    (place / "tmp").mkdir(parents=True)
    own = {"WORKSHOP_STATE_DIR": str(place / "state"), "TMPDIR": str(place / "tmp")}
    code = (
        "from workshop_lib import open_workshop; ws = open_workshop('a', ['objects']);"
        "print(ws.sandbox(database=False).valkey.config_get('dir')['dir'].endswith('valkey'),"
        "ws.valkey.config_get('dir')['dir']); ws.close()"
    )
    file = place / "results" / "r.json"
    file.parent.mkdir()
    try:
        found = ask(code, **own, WORKSHOP_RESULT_FILE=str(file))
        assert found.endswith(f"c/state/{NAME}/valkey")
    finally:
        local.reset(state_folder(place / "state"))


def test_a_run_is_not_held_up_by_a_long_name_of_the_folder_for_temporary_files(tmp_path):
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    out, hostile = tmp_path / ODD, tmp_path / "kernels" / "python3"
    hostile.mkdir(parents=True)
    (hostile / "kernel.json").write_text('{"argv": ["false"], "language": "python"}')
    others = {"JUPYTER_PATH": str(tmp_path), "MPLBACKEND": "nonsense"}
    run("-m", "workshop_lib", "run", "15", "--out", str(out), TMPDIR=str(folder), **others)
    assert (out / "index.html").is_file()
    assert list(folder.iterdir()) == []


def test_pictures_are_the_same_whatever_is_configured_for_others(tmp_path):
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nfont.size: 40\nsavefig.transparent: True\nnonsense\n"
    )
    dark = (
        "import matplotlib.style; matplotlib.style.use('dark_background');"
        "matplotlib.rcParams['text.usetex'] = True"
    )
    configured = {
        "MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "TkAgg", "MPLCONFIGDIR": "/proc/nowhere",
    }  # fmt: skip
    assert ask(DRAW.format(before=dark), **configured) == ask(DRAW.format(before=""))
