"""The checks of a deployment: each answered, in order, with what to do about a fault."""

import threading
from socket import create_server

import pytest

from workshop_lib import check_deployment, checks


def find(report, start):
    return next(check for check in report.checks if check.name.startswith(start))


def test_all_checks_pass_on_the_local_engines_each_told_as_soon_as_it_is_answered(ws):
    seen = []
    report = check_deployment(on_check=seen.append)
    assert seen == report.checks
    assert report.ok
    assert [check.mark for check in report.checks] == ["✓"] * 9
    for name, parts in {
        "Database answers": ("PostgreSQL 16", "repeatable read"),
        "Cache answers": ("volatile-lru", "64 MiB"),
    }.items():
        assert all(part in find(report, name).detail for part in parts)


@pytest.mark.parametrize(
    ("variable", "value", "marks"),
    [("VALKEY_TTL", "soon", "✓✗"), ("WORKSHOP_STATE_DIR", "{}/file/state", "✓✓✗")],
)
def test_what_keeps_the_rest_from_being_asked_is_a_failed_check(
    ws, tmp_path, monkeypatch, variable, value, marks
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(variable, value.format(tmp_path))
    report = check_deployment()
    assert "".join(check.mark for check in report.checks) == marks
    assert variable in report.failed().checks[0].detail
    assert not report.ok


def test_a_database_that_refuses_is_told_from_one_that_is_silent_and_the_rest_is_asked(ws):
    refused = check_deployment(
        database_url="postgresql://a@127.0.0.1:9/x", valkey_url="redis://127.0.0.1:9"
    )
    assert "Connection refused" in find(refused, "Database answers").detail
    assert find(refused, "Port of PostgreSQL").ok is False
    assert find(refused, "Cache answers").ok is False
    assert find(refused, "Object store is writable").ok is True
    with create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://a@127.0.0.1:{silent.getsockname()[1]}/x?connect_timeout=2"
        hanging = check_deployment(database_url=url)
    silence = find(hanging, "Database answers")
    assert "timeout expired" in silence.detail
    assert "security group" in silence.detail
    assert find(hanging, "Port of PostgreSQL").ok is True


def test_a_service_that_hangs_is_called_off_after_its_limit(ws, monkeypatch):
    hold = threading.Event()
    monkeypatch.setattr(checks, "resolve", lambda _: hold.wait())
    monkeypatch.setattr(checks, "ENGINES_LIMIT_S", 0.2)
    services = find(check_deployment(), "Services")
    hold.set()
    assert (services.ok, services.detail) == (False, "no answer within 0.2 s")
    assert "workshop stop" in services.advice


def test_after_an_unknown_name_no_port_is_asked_for_and_a_cache_alone_takes_no_sign_in(ws):
    report = check_deployment(
        valkey_endpoint="no-such.cache.amazonaws.com", database_url="host=/no/such/folder user=me"
    )
    assert [check.name.split(" at ")[0] for check in report.failed().checks] == [
        "Name of ElastiCache for Valkey", "Database answers", "Cache answers",
    ]  # fmt: skip
    assert "known only inside its VPC" in find(report, "Name of ElastiCache").advice
    asked = [check.name for check in report.checks]
    assert "AWS identity" not in asked
    assert not [name for name in asked if name.startswith("Port of ElastiCache")]
    assert not [name for name in asked if "of PostgreSQL" in name]  # a socket in the file system


def test_the_table_in_a_notebook_escapes_what_servers_say_and_shows_commands_as_code():
    one = checks.Check("x", False, "<script>alert(1)</script>", 0.1, "`make venv` if a < b")
    page = checks.Report([one])._repr_html_()
    assert "<script>" not in page
    assert "<code>make venv</code> if a &lt; b" in page
