import threading
from socket import create_server
from types import SimpleNamespace

import pytest

from workshop_lib import check_deployment, checks
from workshop_lib.services import diagnose
from workshop_lib.services.endpoints import CacheEndpoint


def endpoint(**changes):
    given = {"label": "a cache", "host": "127.0.0.1", "port": 1, "arguments": {}}
    return CacheEndpoint(**{**given, **changes})


def find(report, start):
    return next(check for check in report.checks if check.name.startswith(start))


def test_all_checks_pass_on_the_local_engines_each_told_as_soon_as_it_is_answered(ws):
    seen = []
    report = check_deployment(on_check=seen.append)
    assert seen == report.checks
    assert report.ok
    assert [check.mark for check in report.checks] == ["✓"] * 10
    found = {check.name: check.detail for check in report.checks}
    assert found["Database answers"].startswith("PostgreSQL 16")
    assert "repeatable read" in found["Database answers"]
    assert "volatile-lru" in found["Cache answers"]
    assert "64 MiB" in found["Cache answers"]


def test_a_setting_that_is_not_usable_is_a_failed_check_and_ends_the_round(ws, monkeypatch):
    monkeypatch.setenv("VALKEY_TTL", "soon")
    report = check_deployment()
    assert [check.mark for check in report.checks] == ["✓", "✓", "✗", "–"]
    assert "VALKEY_TTL" in report.checks[2].detail
    assert not report.ok


def test_engines_that_cannot_start_are_a_failed_check_with_what_to_do(ws, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WORKSHOP_STATE_DIR", str(tmp_path / "file" / "state"))
    report = check_deployment()
    failed = report.failed().checks
    assert [check.name for check in failed] == ["Services", "Database, cache, object store"]
    assert "WORKSHOP_STATE_DIR" in failed[0].detail


def test_a_database_that_refuses_is_told_from_one_that_is_silent(ws):
    refused = check_deployment(database_url="postgresql://a@127.0.0.1:9/x")
    with create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://a@127.0.0.1:{port}/x?connect_timeout=2"
        hanging = check_deployment(database_url=url)
    assert "Connection refused" in find(refused, "Database answers").detail
    assert find(refused, "Port of PostgreSQL").ok is False
    silence = find(hanging, "Database answers")
    assert "timeout expired" in silence.detail
    assert "security group" in silence.detail
    assert find(hanging, "Port of PostgreSQL").ok is True


def test_the_other_services_are_still_checked_when_one_is_down(ws):
    report = check_deployment(valkey_url="redis://127.0.0.1:9")
    found = {check.name: check.ok for check in report.checks}
    assert found["Database answers"] is True
    assert found["Cache answers"] is False
    assert found["Object store is writable"] is True


def test_a_service_that_hangs_is_called_off_after_its_limit(ws, monkeypatch):
    """It lets everybody in, and never says a word."""
    monkeypatch.setattr(checks, "LIMIT_S", 0.2)
    hold = threading.Event()
    monkeypatch.setattr(checks, "resolve", lambda _: hold.wait())
    monkeypatch.setattr(checks, "ENGINES_LIMIT_S", 0.2)
    services = find(check_deployment(), "Services")
    hold.set()
    assert (services.ok, services.detail) == (False, "no answer within 0.2 s")
    assert "workshop stop" in services.advice


def test_an_unknown_name_is_told_from_a_closed_port():
    with pytest.raises(OSError, match=r"[Nn]ame"):
        diagnose.look_up(endpoint(host="no-such-host.invalid"))
    with pytest.raises(ConnectionRefusedError):
        diagnose.knock(endpoint(port=9))


def test_the_table_in_a_notebook_escapes_what_servers_say_and_shows_commands_as_code():
    one = checks.Check("x", False, "<script>alert(1)</script>", 0.1, "`make venv` if a < b")
    page = checks.Report([one])._repr_html_()
    assert "<script>" not in page
    assert "<code>make venv</code> if a &lt; b" in page


def test_packages_that_are_not_as_pinned_are_named(ws, monkeypatch):
    monkeypatch.setattr(checks, "distributions", list)
    packages = find(check_deployment(valkey_ttl="unusable"), "Packages")
    assert "redis missing (pinned: " in packages.detail


def test_other_versions_outside_a_clone_are_named_and_no_failure(ws, monkeypatch):
    newer = [SimpleNamespace(name=name, version="9999") for name in checks.PACKAGES]
    monkeypatch.setattr(checks, "distributions", lambda: newer)
    found = {}
    for in_a_clone in (True, False):
        monkeypatch.setattr(checks, "IN_CHECKOUT", in_a_clone)
        found[in_a_clone] = find(check_deployment(valkey_ttl="unusable"), "Packages")
    assert (found[True].ok, found[False].ok) == (False, True)
    assert "redis 9999 (pinned: " in found[False].detail
