"""Every notebook runs as it is committed, and arrives at the values it must have.

What is asserted holds on a busy machine as well: counts, and directions that have a mechanism.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import psycopg2
import pytest

from workshop_lib import report, runner
from workshop_lib.findings import find, statements
from workshop_lib.published import studies
from workshop_lib.results import read_result
from workshop_lib.services import local
from workshop_lib.services.engines import HOST, OWNER


@pytest.fixture(scope="module")
def owner(shared, state):
    """A connection as PostgreSQL's superuser, to look over the notebooks' shoulders."""
    connection = psycopg2.connect(
        host=HOST,
        port=shared.endpoints.database.port,
        user=OWNER,
        password=state.secrets()["owner"],
        dbname="postgres",
    )
    connection.autocommit = True
    yield connection.cursor()
    connection.close()


@pytest.fixture(scope="module")
def executed(shared, owner, tmp_path_factory):
    """One quick run of everything; PostgreSQL notes every statement it is sent."""
    folder = tmp_path_factory.mktemp("run")
    owner.execute("ALTER ROLE admin SET log_statement = 'all'")
    try:
        outcomes, _ = runner.run(out=folder, say=lambda _: None)
    finally:
        owner.execute("ALTER ROLE admin RESET log_statement")
    return folder, outcomes


@pytest.fixture(scope="module")
def results(executed):
    folder, outcomes = executed
    return {one.notebook: read_result(folder / f"{one.notebook}.json") for one in outcomes}


@pytest.fixture(scope="module")
def figures(results):
    return {
        notebook: {name: m.value for name, m in result.measurements.items()}
        for notebook, result in results.items()
    }


def test_all_notebooks_pass(executed):
    _, outcomes = executed
    assert [runner.describe(outcome) for outcome in outcomes if not outcome.ok] == []
    assert [o.notebook for o in outcomes] == [n.name for n in runner.find_notebooks()]


def test_no_time_is_negative(results):
    figures = [(what, f) for one in results.values() for what, f in one.measurements.items()]
    assert [what for what, f in figures if f.unit in {"µs", "ms", "times"} and f.number < 0] == []


def test_no_cell_writes_an_error_or_a_warning(executed):
    folder, _ = executed
    found = []
    for file in folder.glob("*.ipynb"):
        for cell in nbformat.read(file, as_version=4).cells:
            for output in cell.get("outputs", ()):
                if output.output_type == "error" or output.get("name") == "stderr":
                    found += [(file.stem, cell.id, output.get("text", output))]
    assert found == []


EXACTLY = {
    "00_check_the_deployment": {"checks": 9, "checks_passed": 9, "same_answer": True},
    "01_seed_the_data": {
        "planets_loaded": True, "planets_new_second_time": 0,
        "statements_executemany": 300, "statements_execute_values": 3, "statements_one_page": 1,
        "users_rows": 500, "orders_rows": 2_500, "type_rows": 10, "transactions_rows": 7_000,
        "objects": 200, "new_rows_second_time": 0,
        "commits_for_transactions": 3,  # 2,999 + 2,999 + 1,002
    },
    "02_cache_a_query": {
        "hits": 9, "misses": 1, "rows_simple": 10, "hit_equals_miss": True,
        "types_lost": 2,  # of the columns: the salary and the date
        "leaked_by_short_key": True, "faults_that_cost_an_answer": 2,
        "promises_kept": 5, "faults_survived": 3,
    },
    # One miss for each query, in the warm-up: everything that was timed was a hit.
    "03_is_it_worth_it": {"misses_while_timing": 4},
    "04_cache_a_record": {
        "columns_refused": 4, "by_hand_equal": True, "hit_equals_miss": True,
        "queries_for_absent_record": 1,
    },
    "05_expire_and_refresh": {
        "naive_race_leaves_old_value": True, "lock_race_leaves_old_value": False,
        "late_reader_kept": False,
    },
    "06_choose_an_eviction_policy": {"hits_when_cured": 20},  # 20 keys, each asked for twice
    "06_eviction_on_paper": {"by_hand_equal": True},
    "07_stay_up_under_stress": {
        "queries_single_flight": 1, "queries_processes_single_flight": 1,
        # A cache that is away costs time and no answers; a database, errors or stale answers.
        "errors_cache_stopped": 0, "errors_cache_frozen": 0,
        "last_read_cache_stopped": "cache", "last_read_cache_frozen": "cache",
        "stale_database_plain": 0, "errors_database_stale_if_error": 0,
        "errors_cache_frozen_by_hand": 0, "last_read_cache_frozen_by_hand": "cache",
        "reads_of_unreadable_entries": 2, "wrong_answers_spoilt": 0,
        "too_large": 20, "hits_below_limit": 19,
    },
    "08_meet_dsql": {
        "statements_refused": 8, "late_sign_in": "refused",  # of 10
        "rows_changed_by_one_update": 0, "rows_in_largest_transaction": 3_000,
        "rows_changed_in_steps": 7_000, "transactions_for_large_write": 3,
        "migration_codes": "0A000 42P01",
    },
    "08_how_large_a_step": {"done_at_once": 0},
    "09_conflicts_and_retry": {
        "duel_codes": "Bob: 40001", "reader_passed": True, "definition_code": "40001",
        "committed_jitter": 12, "arrived_jitter": 12,  # 4 writers × 3
        "on_call_with_skew": 0, "on_call_with_for_update": 1,
    },
    "10_compare_cold_warm_pooled": {"gave_up": True},
    "11_compare_s3_and_cache": {
        "misses_while_warming": 200, "misses_while_timing": 0, "unchanged": True,
        "sources": "store cache store renewed",
    },
    "12_load_inserts": {
        "new_first": 10, "new_again": 0, "refused": "54000",
        # 4 workers × 30 INSERTs of 1 and of 100 rows; the third load has no time for its rows.
        "rows_planned": 12_120 + 2_000_000, "rows_failed": 0, "rows_left": 0,
        "all_reconcile": True,
    },
    "13_work_through_a_queue": {
        "hidden_after_receive": 10, "deliveries": "1 2",
        "bookings_delete_first": 0, "bookings_new_key": 2, "bookings_own_key": 1,
        "lost_by_return_in_loop": 9,
        "deliveries_of_poison": 3, "booked_beside_poison": 2, "dead_letters": 1,
        # 4 rounds of 3 × 3 messages, each 25 statements; a third of them INSERTs.
        "messages_planned": 36, "messages_succeeded": 36, "published_completions": 900,
        "queue_rows": 300, "queue_reconciles": True, "rows_left": 0,
    },
    "14_the_busiest_day": {"accounted": True, "hits_no_cache": 0},
    "15_count_the_cost": {"cases_that_pay": 2, "left_after_clean_up": 0},
    "16_your_own_traffic": {
        "answer": "cache it", "presets_not_to_cache": "cluster13 cluster50",
        "measured_inside": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("notebook", EXACTLY)
def test_counts_and_answers_are_exactly_these(figures, notebook):
    found = figures[notebook]
    assert {name: found.get(name) for name in EXACTLY[notebook]} == EXACTLY[notebook]


LARGER = [
    # A silent server is waited for, and so long is the limit.
    ("00_check_the_deployment", "silence_ended_after", "refused_after"),
    ("00_check_the_deployment", "silence_ended_after", 2_999),
    ("03_is_it_worth_it", "report_speed_up", 1),
    ("03_is_it_worth_it", "report_speed_up", "by_key_speed_up"),
    ("03_is_it_worth_it", "by_key_speed_up_at_2_ms", 1),
    ("04_cache_a_record", "pipeline_speed_up", 1),
    ("05_expire_and_refresh", "stale_for", 0),
    ("05_expire_and_refresh", "queries_ttl_1_measured", "queries_ttl_6_measured"),
    ("05_expire_and_refresh", "highest_wave_no_jitter", "highest_wave_jitter"),
    # Buffers of clients shrink now and then, and a few writes find room.
    ("06_choose_an_eviction_policy", "refused_when_full", 30),
    ("06_choose_an_eviction_policy", "refused_without_ttl", 30),
    ("06_choose_an_eviction_policy", "sessions_evicted", 10),
    ("06_choose_an_eviction_policy", "hits_before_allkeys_lfu", "hits_before_allkeys_random"),
    ("06_choose_an_eviction_policy", "hits_after_allkeys_lru", "hits_after_noeviction"),
    ("06_choose_an_eviction_policy", "hits_calm_allkeys_lru", "hits_scanned_allkeys_lru"),
    ("06_choose_an_eviction_policy", "lfu_gain_by_scan", 0),
    # While one load runs, five more reads arrive on average.
    ("05_refresh_before_the_end", "loads_expire", "loads_lock"),
    ("05_refresh_before_the_end", "waited_lock", "waited_stale"),
    ("05_refresh_before_the_end", "waited_early", "waited_stale"),
    ("05_refresh_before_the_end", "loads_beta_6", "loads_beta_2"),
    ("06_eviction_on_paper", "hits_scan_lfu", "hits_scan_lru"),
    ("06_eviction_on_paper", "hits_moving_lru", "hits_moving_lfu"),
    ("06_eviction_on_paper", "hits_ranked_ttls", "hits_equal_ttls"),
    ("07_stay_up_under_stress", "queries_naive", 2),
    ("07_stay_up_under_stress", "queries_processes_each_for_itself", 2),
    ("07_stay_up_under_stress", "errors_database_plain", 0),
    ("07_stay_up_under_stress", "stale_database_stale_if_error", 0),
    # Small steps pay for their transactions, large ones for their conflicts.
    ("08_how_large_a_step", "cost_20", "cost_50"),
    ("08_how_large_a_step", "cost_150", "cost_50"),
    ("09_conflicts_and_retry", "modelled_attempts_at_once", "modelled_attempts_jitter"),
    # A query over a new connection is a connection and a query; one over a pool is a query.
    ("10_compare_cold_warm_pooled", "new_connection_p50", "pooled_p50"),
    ("10_compare_cold_warm_pooled", "rate_with_4_connections", "rate_with_1_connections"),
    ("10_compare_cold_warm_pooled", "round_trips_a_new_connection", "round_trips_a_pool"),
    ("10_compare_cold_warm_pooled", "round_trips_a_pool", "round_trips_a_hit"),
    ("11_compare_s3_and_cache", "cache_speed_up", 1),
    ("11_compare_s3_and_cache", "hit_ratio_most_requests_per_byte", "hit_ratio_most_requests"),
    ("11_compare_s3_and_cache", "hit_ratio_most_requests_per_byte", "hit_ratio_smallest"),
    ("11_compress_or_not", "memory_rows_0", "memory_rows_1"),
    ("11_compress_or_not", "break_even_rows", "break_even_one_row"),
    ("11_compress_or_not", "break_even_rows", "break_even_photo"),
    ("12_load_inserts", "gain_100_rows", 2),
    ("12_load_inserts", "copy_rate", "rate_1_rows"),
    ("12_load_inserts", "round_trips_executemany", 10),  # of 20 rows
    ("12_load_inserts", "round_trips_executemany", "round_trips_execute_values"),
    ("12_load_inserts", "rows_dropped_cut_short", 0),
    # The same requests: before it is sent, each may wait in line.
    ("14_the_busiest_day", "p95_from_plan", "p95_from_sending"),
    # A warm cache has every answer for one TTL, and a stopped one has none.
    ("14_the_busiest_day", "first_miss_warm", "first_miss_cold"),
    ("14_the_busiest_day", "hits_warm", "hits_stops_half_way"),
    ("14_the_busiest_day", "default_wait", 500),
    ("14_the_busiest_day", "stopped_cache_asked_each_time_p50", "stopped_cache_left_alone_p50"),
    ("14_the_busiest_day", "hits_stops_half_way", "tries_while_away"),
    ("15_count_the_cost", "hit_ratio_used", "paying_hit_ratio"),
    ("15_count_the_cost", "paying_hit_ratio", 0),
    ("16_your_own_traffic", "tenth_best_possible", "tenth_lfu"),
    ("16_your_own_traffic", "tenth_best_possible", "tenth_lru"),
    ("16_your_own_traffic", "out_of_date_longest_ttl", "out_of_date_shortest_ttl"),
]


def test_what_has_to_be_larger_is_larger(figures):
    wrong = []
    for notebook, larger, smaller in LARGER:
        found = figures[notebook]
        if not found[larger] > (found[smaller] if isinstance(smaller, str) else smaller):
            wrong.append((notebook, larger, found[larger], smaller))
    assert wrong == []


@pytest.mark.parametrize("kind", ["steady", "scan", "moving"])
def test_no_policy_beats_belady(figures, kind):
    found = figures["06_eviction_on_paper"]
    ratios = {name: value for name, value in found.items() if name.startswith(f"hits_{kind}_")}
    assert len(ratios) == 6
    assert max(ratios, key=ratios.get) == f"hits_{kind}_belady"


def test_what_is_worked_out_from_figures_is_right(figures, results):
    found = figures["09_conflicts_and_retry"]
    assert found["arrived_no_retry"] == found["committed_no_retry"]
    found = figures["10_compare_cold_warm_pooled"]
    assert all(0 < found[f"break_even_at_{distance}_ms"] <= 1 for distance in (0, 2, 10))
    kept = results["10_compare_cold_warm_pooled"].latencies
    assert [(d["database_ms"], d["cache_ms"]) for d in kept] == [(2, 0), (10, 0)]
    found = figures["15_count_the_cost"]
    # 200 reads/s × 2,628,000 s × 0.06 DPU × 8 USD a million = 252.29; writes 6.49; 20 GB.
    assert found["without_cache"] == pytest.approx(252.288 + 6.491 + 6.6, abs=0.001)
    assert found["saving"] == pytest.approx(found["without_cache"] - found["with_cache"])
    found = figures["12_load_inserts"]
    # One row: 0.00375 DPU read, 0.008 computed, 1,024 bytes written; a hundred: 0.08, and theirs.
    assert found["bill_cut_100_bytes"] == pytest.approx(6.175 / 0.709, rel=1e-3)
    assert found["bill_cut_1000_bytes"] < 3 < found["bill_cut_400_bytes"] < found["bill_cut"]
    assert found["rows_planned"] == found["rows_succeeded"] + found["rows_dropped_cut_short"]
    assert found["rows_stored"] == found["rows_deleted"]


def test_a_bend_is_claimed_where_the_line_fits(figures):
    found = figures["12_load_inserts"]
    assert not (found["bend_claimed"] and found["fit_misses"] > 0.15)
    assert found["gain_lowest"] <= found["gain_100_rows"] <= found["gain_highest"]
    assert found["far_1_round_trip"] > found["near_1_round_trip"]


def test_the_larger_an_object_the_less_a_cache_gains(figures):
    found = figures["11_compare_s3_and_cache"]
    small, large = (found[f"store_{size}_kb"] / found[f"cache_{size}_kb"] for size in (1, 10_000))
    assert small > large


def test_the_report_finds_every_figure_and_picture_that_it_is_to_show(executed, results):
    folder, _ = executed
    missing = [find(one, results[one.notebook]).missing for one in statements()]
    assert [why for why in missing if why] == []
    for name in results:
        images = [
            (output.metadata["image/png"]["alt"], "headline" in cell.metadata.get("tags", ()))
            for cell in nbformat.read(folder / f"{name}.ipynb", as_version=4).cells
            for output in cell.get("outputs", ())
            if "image/png" in output.get("data", {})
        ]
        assert all(alt for alt, _ in images)
        assert sum(headline for _, headline in images) == 1, name
    rows = [row for study in studies().values() for row in report.beside(study, results)]
    assert [published.subject for published, ours in rows if ours is None] == []


def test_the_page_of_a_whole_run_is_small_enough_to_send_and_leads_to_every_notebook(executed):
    folder, outcomes = executed
    page = report.write_report(folder)
    assert page.stat().st_size < 8_000_000
    text = page.read_text(encoding="utf-8")
    assert "did not record what it takes" not in text
    assert [o.notebook for o in outcomes if f'href="{o.notebook}.html"' not in text] == []


def test_nothing_of_a_run_is_left_in_database_cache_or_store(executed, shared):
    _, outcomes = executed
    assert [outcome.left_undone for outcome in outcomes if outcome.left_undone] == []
    schemas = shared.database.query(
        "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'run%%'", ()
    )
    assert schemas.rows == []
    assert list(shared.valkey.scan_iter(match="run*")) == []
    listed = shared.s3.list_objects_v2(Bucket=shared.bucket, Prefix="run")
    assert listed.get("KeyCount", 0) == 0


def test_every_statement_of_the_notebooks_is_accepted_by_the_dsql_linter(executed, state):
    statements = sent_statements((state.logs / "postgres.log").read_text(errors="replace"))
    assert len(statements) > 30
    assert [s for s in statements if s.startswith("CREATE TABLE")]
    linter = Path(sys.executable).with_name("dsql-lint")
    text = ";\n".join(statements) + ";\n"
    done = subprocess.run(
        [linter, "--format", "json", "-"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def sent_statements(log: str) -> list[str]:
    """The different statements in PostgreSQL's log, long lists of rows cut to the first."""
    found = re.findall(
        r"LOG:  (?:statement|execute [^:]+): (.*?)(?=\n\d{4}-\d\d-\d\d |\Z)", log, re.DOTALL
    )
    rows = re.compile(r"(VALUES \(.*?\)),\(.*\)(?= ON CONFLICT|$)", re.DOTALL)
    shortened = (rows.sub(r"\1", statement) for statement in found)
    # What a notebook sends to be refused, and is refused here as well.
    refused = re.findall(r"ERROR:  .*?STATEMENT:  (.*?)(?=\n\d{4}-\d\d-\d\d |\Z)", log, re.DOTALL)
    known = {statement.strip() for statement in refused}
    # What makes PostgreSQL behave like DSQL is not sent to DSQL.
    ours = re.compile(r"dsql_rules|SET lock_timeout|SET LOCAL workshop")
    sent = {statement.strip() for statement in shortened if not ours.search(statement)}
    # Of statements that differ in their values only, one will do.
    values = re.compile(r"'(?:[^']|'')*'|\d+")
    return sorted({values.sub("?", statement): statement for statement in sent - known}.values())


def test_no_engine_was_harmed(executed, state):
    reports = {engine.name: engine.status for engine in local.status(state).engines}
    for on_demand in ("aws", "dsql"):  # may have stopped when the last notebook was done with it
        assert reports.pop(on_demand, "down") in {"up", "down"}
    assert reports == {"postgres": "up", "valkey": "up", "s3": "up"}
