"""What a cache is worth, by hand-worked cases; and the command that says it."""

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date

import numpy as np
import pytest
from click.testing import CliRunner, Result

from workshop_lib.advise.advice import (
    CACHE,
    LEAVE,
    MEASURE,
    VERDICTS,
    Assumptions,
    advise,
)
from workshop_lib.advise.statistics_file import Statistic, parse
from workshop_lib.cli import main
from workshop_lib.costs import Prices
from workshop_lib.errors import DataError
from workshop_lib.paths import CHECKOUT
from workshop_lib.prices import load_prices
from workshop_lib.simulate import poisson_times, ttl_outcome, zipf_stream

PRICES = Prices("test-1", date(2026, 10, 1), 8.0, 0.33, 0.1, 0.002, 0, 0, 0, 0, 0, 0, 0, 0)
"""Memory of 0.1 GB costs 7.30 USD a month."""
EASY = Assumptions(ttl_s=60, distinct=100, days=1, cache_ms=1, network_ms=1, row_bytes=200)
DAY = 86_400
MONTH = 730 * 3_600
DOCS = CHECKOUT / "docs" / "for-my-service.md"


def only(statistic, assumptions=EASY, *others):
    """The advice on one statement of a file."""
    found = advise([statistic, *others], assumptions, PRICES).statements
    return next(one for one in found if one.statement == statistic.query)


def test_a_statement_without_parameters_is_one_key():
    # Once a second, 9 ms of work and 1 ms of network; 5 rows of 200 bytes are one ECPU.
    one = only(Statistic("SELECT count(*) FROM t", 9.0, rows=5, dpu=0.06, calls=DAY))
    gain = one.gain
    assert (one.verdict, one.calls_per_s, one.share) == (CACHE, 1.0, 1.0)
    assert gain.keys == 1
    assert gain.hit_ratio == pytest.approx(60 / 61)
    assert gain.needed == pytest.approx((1 + 1) / (10 + 1))
    # A look for each, and for each miss the database and the filling as well.
    assert gain.waiting_s == pytest.approx(MONTH * (10 - (1 + 11 / 61)) / 1_000)
    assert gain.database_s == pytest.approx(MONTH * 60 / 61 * 9 / 1_000)
    assert gain.dpu == pytest.approx(MONTH * 60 / 61 * 0.06)
    requests = MONTH * (1 + 1 / 61) * 0.002 / 1e6
    assert gain.requests_usd == pytest.approx(requests)
    assert gain.usd == pytest.approx(MONTH * 60 / 61 * 0.06 * 8 / 1e6 - requests)
    assert gain.cached_gb == pytest.approx(60 / 61 * 1_000 / 1e9)
    assert gain.stale == 0


def test_with_parameters_the_verdict_hangs_on_how_many_values_there_are():
    query = "SELECT * FROM t WHERE id = $1"
    seen = Statistic(query, 9.0, calls=DAY)
    # λT · (1 - 2/11) / (2/11) = 60 · 4.5
    assert only(seen).gain.most_keys == pytest.approx(270)
    for distinct, verdict in ((26, CACHE), (28, MEASURE), (2_690, MEASURE), (2_710, LEAVE)):
        one = only(seen, Assumptions(distinct=distinct, days=1, cache_ms=1, network_ms=1))
        assert one.verdict == verdict, distinct
        assert "up to 270 different" in one.reason
        assert one.gain.hit_ratio == pytest.approx(60 / (60 + distinct))


def test_no_statement_has_more_values_than_calls():
    one = only(Statistic("SELECT * FROM t WHERE id = $1", 9.0, calls=3))
    assert one.gain.keys == 3


def replayed(times, keys):
    """What a day of requests saves: users' waiting and the database's work, seconds a month."""
    requests = len(times)
    hits = int(ttl_outcome(times, keys, np.zeros(requests), ttl_s=60).hit.sum())
    with_cache = requests * 1 + (requests - hits) * (10 + 1)
    return (requests * 10 - with_cache) * 730 / 24 / 1_000, hits * 9 * 730 / 24 / 1_000


def test_a_replayed_day_saves_what_is_said_and_favourites_and_rushes_only_add_to_it():
    calls, random = 2 * DAY, np.random.default_rng(1)
    gain = only(Statistic("SELECT * FROM t WHERE id = $1", 9.0, calls=calls)).gain
    times = poisson_times(2, DAY, seed=1)
    even = random.integers(100, size=len(times)).tolist()
    assert replayed(times, even) == pytest.approx((gain.waiting_s, gain.database_s), rel=0.01)
    skewed = zipf_stream(len(times), 100, seed=1)
    rushed = [time / 4 for time in times]  # all of it in six hours
    for waiting_s, database_s in (replayed(times, skewed), replayed(rushed, even)):
        assert waiting_s > 1.02 * gain.waiting_s
        assert database_s > 1.02 * gain.database_s


def test_reasons_to_leave_a_read():
    rare = only(Statistic("SELECT count(*) FROM t", 9.0, calls=1))
    assert (rare.verdict, "too rarely" in rare.reason) == (LEAVE, True)
    near = Assumptions(days=1, cache_ms=2, network_ms=1)
    quick = only(Statistic("SELECT count(*) FROM t", 0.5, calls=DAY), near)
    assert (quick.verdict, "as fast as a cache" in quick.reason) == (LEAVE, True)
    assert quick.gain.needed is None


def test_a_table_that_is_written_more_often_than_it_is_read_is_looked_at_first():
    read = Statistic("SELECT count(*) FROM shop.t", 9.0, calls=DAY)
    # One write in a TTL of 60 s: of 60 hits in a cycle of 61 answers, 1/e are stale.
    rare = only(read, EASY, Statistic("UPDATE t SET a = $1", 1.0, calls=DAY / 60))
    assert rare.verdict == CACHE
    assert rare.gain.stale == pytest.approx(60 / 61 * 0.367879, rel=1e-5)
    often = only(read, EASY, Statistic("UPDATE t SET a = $1", 1.0, calls=DAY))
    assert (often.verdict, "written more often" in often.reason) == (MEASURE, True)
    other = only(read, EASY, Statistic("UPDATE u SET a = $1", 1.0, calls=DAY))
    assert (other.verdict, other.gain.stale) == (CACHE, 0)


def test_what_can_be_unique_in_each_call_and_what_asks_for_the_time_is_measured_first():
    for condition, why in (("at > $1", "may be unique"), ("at = now()", "asks for the time")):
        one = only(Statistic(f"SELECT * FROM t WHERE {condition}", 500.0, calls=10 * DAY))
        assert (one.verdict, why in one.reason) == (MEASURE, True)


def test_the_ranking_is_by_waiting_and_what_to_leave_is_last_by_time():
    texts = {"TABLE a": 1, "TABLE b": 50, "DELETE FROM c": 900, "TABLE d": 10, "BEGIN": 1_000}
    given = [Statistic(query, ms, calls=DAY) for query, ms in texts.items()]
    found = advise(given, EASY, PRICES)
    ranked = ["TABLE b", "TABLE d", "TABLE a", "BEGIN", "DELETE FROM c"]
    assert [one.statement for one in found.statements] == ranked
    assert sum(one.share for one in found.statements) == pytest.approx(1)
    kept = [one.gain.waiting_s for one in found.statements[:3]]
    assert found.total["waiting_s"] == pytest.approx(sum(kept))
    assert found.total["dpu"] is None
    assert found.memory_usd == pytest.approx(0.1 * 730 * 0.1)


def test_calls_of_a_plan_are_assumed_and_days_must_be_known():
    plan = Statistic("TABLE a", 9.0, dpu=0.1)
    assert only(plan, Assumptions(calls_per_s=7)).calls_per_s == 7
    counted = Statistic("TABLE a", 9.0, calls=DAY, days=2)
    assert only(counted, Assumptions()).calls_per_s == 0.5
    assert only(counted, EASY).calls_per_s == 1  # what is said wins
    with pytest.raises(DataError, match="--days"):
        advise([Statistic("TABLE a", 9.0, calls=DAY)], Assumptions(), PRICES)


# --- the command ---


@pytest.fixture
def workshop(tmp_path, monkeypatch) -> Iterator:
    """Runs `workshop advise` on a text; the process's own signal handling is put back."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)

    def run(text: str | bytes, *words: str) -> Result:
        raw = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "statements.csv").write_bytes(raw)
        done = CliRunner().invoke(main, ["advise", "statements.csv", *words])
        assert isinstance(done.exception, SystemExit | None), done.exception
        return done

    yield run
    signal.signal(signal.SIGTERM, before)


FILE = f"""query,calls,mean_ms,rows,dpu,days
SELECT count(*) FROM t,{DAY},9,{DAY},0.06,1
SELECT * FROM t WHERE id = $1,{DAY},9,{DAY},0.06,1
SELECT * FROM t WHERE at > $1 AND pin = '1234',{DAY},900,{DAY},0.06,1
"UPDATE t SET note = $1 -- {"long " * 40}",60,9,60,0.06,1
TABLE u,{1000 * DAY},9,1,,1
<insufficient privilege>,5,1,5,,1
"""


def test_the_terminal_shows_all_verdicts_the_assumptions_and_what_the_file_cannot_tell(workshop):
    done = workshop(FILE, "--distinct", "50", "--ttl", "30")
    assert done.exit_code == 0
    for kind in VERDICTS:
        assert f"\n{kind.upper()}\n" in done.output
    for said in (
        "Statements: 5. To cache: 2; to measure first: 2; to leave: 1.",
        "whose text the file hides: 1.",
        "Hit ratio: over 0.999 expected",  # below one, and not shown as one
        "--distinct 50: different",
        "--ttl 30: seconds",
        "--region-prices: us-east-1",
        "it writes",
        "THE FILE CANNOT TELL",
    ):
        assert said in done.output, said
    assert "1234" not in done.output
    assert max(map(len, done.output.splitlines())) <= 100


def test_only_the_first_of_a_kind_are_shown_and_the_rest_is_counted(workshop):
    rows = [f"SELECT a{n} FROM t,{DAY},9" for n in range(5)] + [
        f"DELETE FROM t{n},1,1" for n in "ab"
    ]
    done = workshop("\n".join(["query,calls,mean_ms", *rows]), "--top", "1", "--days", "1")
    assert "\n4 more: " in done.output
    assert "\n1 more: " in done.output
    assert " 2. " not in done.output


def test_json_is_the_advice_and_nothing_else_also_from_windows(workshop):
    found = json.loads(workshop("\ufeff" + FILE.replace("\n", "\r\n"), "--json").output)
    statistics, hidden = parse(FILE)
    again = asdict(advise(statistics, Assumptions(), load_prices(), hidden))
    assert found == json.loads(json.dumps(again))


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (b"", (), "It is no CSV"),
        (b"\xff\xfeq\x00", (), "names no column query"),
        (b"query,calls,mean_ms\nTABLE a,1,1\n", (), "say it by --days"),
        (FILE.encode(), ("--region-prices", "none.toml"), "The prices in none.toml cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(workshop, text, words, said):
    done = workshop(text, *words)
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert said in done.output
    assert len(done.output.splitlines()) == 1


def test_a_file_that_is_not_there_and_an_assumption_out_of_range_are_refused_by_name(workshop):
    assert "'nowhere.csv'" in CliRunner().invoke(main, ["advise", "nowhere.csv"]).output
    assert "Invalid value for '--ttl'" in workshop(FILE, "--ttl", "0").output


def test_without_the_parser_it_is_one_sentence(workshop, monkeypatch):
    for name in ("advice", "sql_shape", "statistics_file"):
        monkeypatch.delitem(sys.modules, f"workshop_lib.advise.{name}", raising=False)
        monkeypatch.delattr(f"workshop_lib.advise.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "pgparse", None)
    done = workshop(FILE)
    assert done.output.startswith("Error: The package pgparse is not installed")
    assert len(done.output.splitlines()) == 1


def test_without_a_file_it_says_how_to_make_one():
    done = CliRunner().invoke(main, ["advise"])
    assert "\\copy (SELECT query, calls, total_exec_time" in done.output
    assert "Read the answer" not in done.output


def test_the_example_in_the_docs_is_what_the_command_makes(workshop):
    page = DOCS.read_text()
    given = page.partition("```csv\n")[2].partition("```")[0]
    shown = page.partition("```text\n")[2].partition("```")[0]
    made = workshop(given).output.partition("\nASSUMED")[0]
    assert shown == made
