"""Every notebook runs as it is committed, and arrives at the values it must have.

What is asserted holds on a busy machine as well: counts, and directions that have a mechanism.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import psycopg2
import pytest

from workshop_lib import report, runner
from workshop_lib.findings import content, find
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


TWICE = ("01", "02", "03")
"""The numbers of those that leave tables, keys and objects: they also run twice over."""
NOT_ALWAYS_THERE = {"saturation_no_cache", "saturation_with_a_cache"}
"""Where the limit was not reached, or always, notebook 11 has no point of saturation."""


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
    return {outcome.name: read_result(folder / f"{outcome.name}.json") for outcome in outcomes}


@pytest.fixture(scope="module")
def figures(results):
    return {
        notebook: {name: m.value for name, m in result.measurements.items()}
        for notebook, result in results.items()
    }


def test_all_notebooks_pass(executed):
    _, outcomes = executed
    assert [runner.describe(outcome) for outcome in outcomes if not outcome.ok] == []
    assert [o.name for o in outcomes] == [n.name for n in runner.find_notebooks()]


def test_run_all_and_run_all_once_more_records_figures_of_the_same_names(shared, figures, tmp_path):
    for original in runner.find_notebooks():
        if original.name.startswith(TWICE):
            notebook = nbformat.read(original.path, as_version=4)
            again = [nbformat.v4.new_code_cell(c.source) for c in notebook.cells if "outputs" in c]
            values = [f"{name} = {value!r}" for name, value in original.quick.items()]
            again.insert(1, nbformat.v4.new_code_cell("\n".join(values)))
            notebook.cells += again
            nbformat.write(notebook, tmp_path / original.path.name)
    outcomes, _ = runner.run(out=tmp_path / "out", say=lambda _: None, notebooks=tmp_path)
    assert [runner.describe(outcome) for outcome in outcomes if not outcome.ok] == []
    assert len(outcomes) == len(TWICE)
    differ = {
        o.name: figures[o.name].keys()
        ^ read_result(tmp_path / "out" / f"{o.name}.json").measurements.keys()
        for o in outcomes
    }
    # What is there already is not loaded again, and loading nothing has no rate.
    assert differ.pop("01_seed_the_data") == {"load_rate_orders"}
    assert not any(differ.values()), differ


def test_every_figure_is_a_finite_number_and_no_time_is_negative(results):
    for name, result in results.items():
        for what, figure in result.measurements.items():
            if isinstance(figure.value, int | float):
                assert math.isfinite(figure.value), (name, what)
                assert figure.value >= 0 or figure.unit not in {"µs", "ms", "times"}, what


def test_no_cell_writes_an_error_or_a_warning(executed):
    folder, _ = executed
    found = []
    for file in folder.glob("*.ipynb"):
        for cell in nbformat.read(file, as_version=4).cells:
            for output in cell.get("outputs", ()):
                if output.output_type == "error" or output.get("name") == "stderr":
                    found += [(file.stem, cell.id, output.get("text", output))]
    assert found == []


def test_the_deployment_checks_all_pass_and_the_broken_ones_fail(figures):
    found = figures["00_check_the_deployment"]
    assert found["checks"] == found["checks_passed"] == 11
    assert found["silence_ended_after"] >= 2_000  # a silent server is waited for: so is the limit
    assert found["silence_ended_after"] > found["refused_after"]


def test_the_data_has_the_promised_sizes_and_loading_again_changes_nothing(figures):
    found = figures["01_seed_the_data"]
    sizes = {name: found[f"{name}_rows"] for name in ("users", "orders", "type", "transactions")}
    assert sizes == {"users": 500, "orders": 2_500, "type": 10, "transactions": 7_000}
    assert found["objects"] == 200
    assert found["new_rows_second_time"] == 0
    assert found["commits_for_transactions"] == 3  # 3,000 + 3,000 + 1,000


def test_nine_of_ten_requests_are_hits_and_the_database_sees_one(figures):
    found = figures["02_cache_a_query"]
    assert (found["hits"], found["misses"], found["queries_seen_by_database"]) == (9, 1, 1)
    assert found["rows_simple"] == 10
    assert found["hit_equals_miss"] is True
    assert found["empty_answer_cached"] is True
    assert found["corrupt_entries_survived"] == 1
    # The first request by key and of the report; the complex query was cached before. So
    # everything that was timed was a hit.
    assert found["misses_while_measuring"] == 2


def test_the_report_query_gains_more_from_the_cache_than_the_lookup_by_key(figures):
    found = figures["02_cache_a_query"]
    assert found["report_speed_up"] > max(1, found["by_key_speed_up"])


def test_a_record_survives_its_hash_and_absence_is_asked_for_once(figures):
    found = figures["03_cache_a_record"]
    assert found["hit_equals_miss"] is True
    assert found["queries_for_absent_record"] == 1
    assert found["pipeline_speed_up"] > 1


def test_a_longer_ttl_has_more_hits_about_as_many_as_the_replayed_stream(figures):
    found = figures["04_expire_and_refresh"]
    pairs = [
        (found[name], found[name.replace("measured", "replayed")])
        for name in found
        if name.startswith("hit_ratio_measured")
    ]
    assert len(pairs) == 4
    # The stream is the same; only requests that fall on the edge of a TTL may differ. A busy
    # machine is late by as much as the shorter TTLs.
    assert pairs[-1][0] == pytest.approx(pairs[-1][1], abs=0.1)
    assert pairs[0][0] < pairs[-1][0]


def test_the_old_value_was_seen_and_the_race_is_open_without_the_lock_only(figures):
    found = figures["04_expire_and_refresh"]
    assert found["stale_for"] > 0
    assert found["naive_race_leaves_old_value"] is True
    assert found["lock_race_leaves_old_value"] is False


KINDS = ("hot_and_cold", "scan", "shifting")


def test_no_policy_beats_belady_and_caches_evict_as_exact_algorithms_do(figures):
    found = figures["05_choose_an_eviction_policy"]
    for kind in KINDS:
        ratios = {
            name.rpartition("_")[2]: value
            for name, value in found.items()
            if name.startswith(f"hit_ratio_{kind}_")
        }
        assert len(ratios) == 8
        assert 0 < max(ratios.values()) <= found[f"best_possible_{kind}"]
        # With a TTL on every key the two families choose among the same candidates.
        for how in ("lru", "lfu", "random"):
            assert abs(ratios[f"volatile-{how}"] - ratios[f"allkeys-{how}"]) <= 0.05
    assert found["evictions_volatile_lru"] > 20
    assert found["refused_noeviction"] > 20


def test_a_cache_full_of_keys_without_ttl_answers_nothing_and_harms_nobody(figures):
    found = figures["05_choose_an_eviction_policy"]
    assert (found["hits_when_full"], found["errors_when_full"]) == (0, 100)
    assert found["answers_right_when_full"] is True
    assert found["hits_when_cured"] == 50
    assert found["sessions_lost_allkeys"] > 0
    hot = "hit_ratio_hot_and_cold_volatile-ttl"
    assert found["ranked_volatile_ttl"] > found[hot]


def test_single_flight_sends_one_query_and_the_naive_way_sends_many(figures):
    found = figures["06_stay_up_under_stress"]
    assert (found["queries_single_flight"], found["queries_processes_single_flight"]) == (1, 1)
    assert found["queries_naive"] > 2
    assert found["queries_processes_each_for_itself"] > 2


def test_a_cache_that_is_away_costs_time_and_no_answers(figures):
    found = figures["06_stay_up_under_stress"]
    assert found["errors_cache_stopped"] == found["errors_cache_frozen"] == 0
    assert found["last_read_cache_stopped"] == found["last_read_cache_frozen"] == "cache"


def test_a_database_that_is_away_is_an_error_or_a_stale_answer(figures):
    found = figures["06_stay_up_under_stress"]
    assert found["errors_database_plain"] > 0
    assert found["stale_database_plain"] == 0
    assert found["errors_database_stale_if_error"] == 0
    assert found["stale_database_stale_if_error"] > 0


def test_garbage_and_what_is_too_large_are_survived(figures):
    found = figures["06_stay_up_under_stress"]
    assert found["reads_of_unreadable_entries"] >= 2
    assert found["errors_spoilt"] == 0
    assert (found["too_large"], found["hits_below_limit"]) == (20, 19)


def test_dsql_refuses_what_it_refuses_and_a_large_write_goes_in_steps(figures):
    found = figures["07_meet_dsql"]
    assert found["statements_refused"] == 8  # of 10
    assert (found["rows_in_largest_transaction"], found["rows_changed_in_steps"]) == (3_000, 7_000)
    assert found["transactions_for_large_write"] == 3
    assert found["migration_codes"] == "0A000 25P02 42P01"


def test_the_second_of_two_transactions_fails_and_write_skew_needs_for_update(figures):
    found = figures["07_meet_dsql"]
    assert found["duel_codes"] == "Bob: 40001"
    assert (found["on_call_with_skew"], found["on_call_with_for_update"]) == (0, 1)


def test_every_increment_arrives_with_retry_and_none_is_lost_in_silence_without(figures):
    found = figures["07_meet_dsql"]
    wanted = 16 * 8
    assert found["attempts_no_retry"] == wanted
    assert found["arrived_no_retry"] == found["succeeded_no_retry"] < wanted
    for way in ("at_once", "jitter"):
        assert found[f"arrived_{way}"] == found[f"succeeded_{way}"] == wanted
        assert found[f"attempts_{way}"] > wanted
    crowded, spread = (found[f"conflicts_per_increment_{slots}_rows"] for slots in (1, 256))
    assert spread < crowded


def test_of_ten_requests_one_is_a_miss_in_each_state_of_the_database(figures):
    found = figures["08_compare_cold_warm_pooled"]
    for state in ("cold", "warm", "pooled"):
        assert found[f"demo_{state}_misses"] == 1
        speed_up = found[f"demo_{state}_miss_ms"] / found[f"demo_{state}_hits_avg_ms"]
        assert found[f"demo_{state}_speed_up"] == pytest.approx(speed_up)
        assert found[f"demo_{state}_hits_min_ms"] <= found[f"demo_{state}_hits_max_ms"]
    assert found["warm_p50"] > found["pooled_p50"]


def test_callers_wait_for_a_small_pool_and_give_up_only_when_they_are_told_to(figures):
    found = figures["08_compare_cold_warm_pooled"]
    assert [found[f"pool_{size}_errors"] for size in (1, 4, 16)] == [0, 0, 0]
    assert found["pool_1_wait_p95"] > found["pool_16_wait_p95"]
    assert found["gave_up"] > 0
    assert found["gave_up"] + found["served"] == 16 * 4


def test_a_query_to_a_distant_database_takes_the_distance_at_least(figures, results):
    found = figures["08_compare_cold_warm_pooled"]
    for distance in (2, 10):
        assert found[f"pooled_at_{distance}_ms"] >= distance
        assert 0 < found[f"break_even_at_{distance}_ms"] <= 1
    kept = results["08_compare_cold_warm_pooled"].latencies
    assert [(d["database_ms"], d["cache_ms"]) for d in kept] == [(2, 0), (10, 0), (10, 10)]


def test_objects_come_from_the_cache_and_are_renewed_by_their_etag(figures):
    found = figures["09_compare_s3_and_cache"]
    assert found["keys_in_cache"] == 200
    assert found["sources_when_renewed"] == "store renewed store"
    assert found["renewed_is_the_same"] is found["changed_is_the_new_one"] is True
    assert found["kept_although_too_large"] == 0
    assert found["bursts_are_equal"] is True
    assert found["cache_speed_up"] > 1


def test_text_shrinks_in_the_cache_and_noise_does_not(figures):
    found = figures["09_compare_s3_and_cache"]
    assert found["bytes_text_compressed"] < found["bytes_text_plain"] / 3
    assert found["bytes_noise_compressed"] == found["bytes_noise_plain"]


def test_the_head_start_of_the_cache_shrinks_with_the_size_of_the_object(figures):
    found = figures["09_compare_s3_and_cache"]
    small, large = (found[f"store_here_{s}_kb"] / found[f"cache_here_{s}_kb"] for s in (1, 10_000))
    assert small > large


def test_a_cache_that_is_too_small_hits_about_as_often_as_predicted(figures):
    found = figures["09_compare_s3_and_cache"]
    for share in (10, 50, 75):
        measured = found[f"hit_ratio_measured_{share}_percent"]
        likely = [found[f"hit_ratio_{way}_{share}_percent"] for way in ("lru", "random")]
        assert min(likely) - 0.1 < measured < max(likely) + 0.1
        assert 0 < found[f"objects_that_fit_{share}_percent"] < 200
    assert found["hit_ratio_measured_10_percent"] < found["hit_ratio_measured_75_percent"]


def test_11_accounts_for_every_message_and_request_and_leaves_no_row(figures):
    found = figures["11_load_reads_and_writes"]
    # 4 rounds of 3 × 10 messages, each 5 statements; a third of them INSERTs.
    assert found["messages_planned"] == found["messages_succeeded"] == 120
    assert found["published_completions"] == 600
    assert found["queue_rows"] == 200
    assert found["all_reconcile"] is found["probes_reconcile"] is True
    assert found["hit_ratio_no_cache"] == 0
    assert found["hit_ratio_warm"] > 0.5
    assert found["hit_ratio_stops_half_way"] < found["hit_ratio_warm"]
    assert found["rows_left"] == 0


def test_the_bill_is_that_of_the_model_and_the_clean_up_leaves_nothing(figures):
    found = figures["12_count_the_cost"]
    # 200 reads/s × 2,628,000 s × 0.06 DPU × 8 USD a million = 252.29; 5 writes/s = 6.31; 20 GB.
    assert found["without_cache"] == pytest.approx(252.288 + 6.3072 + 6.6)
    assert found["saving"] == pytest.approx(found["without_cache"] - found["with_cache"])
    assert 0 < found["paying_hit_ratio"] < found["hit_ratio_used"]
    assert found["cases_that_pay"] == 2
    assert found["left_after_clean_up"] == 0


def test_10_accounts_for_every_row_and_leaves_none(figures):
    found = figures["10_load_inserts"]
    # 2 workers × 120 INSERTs of 1 and of 100 rows.
    assert found["rows_planned"] == found["rows_succeeded"] == 24_240
    assert found["gain_100_rows"] > 1
    assert found["bend_rows"] >= 1
    assert found["copy_rate"] > found["one_row_rate"]
    assert found["twice_new"] == 50
    assert found["conflicts"] == 0
    # The curve: 300, 30, 12 and 12 INSERTs and a warm-up each of 1, 10, 100, 1,000 rows; 12 COPYs
    # of 1,000; 8 warm-ups of each scenario; those sent twice. Optional parts delete their own.
    curve = 301 + 31 * 10 + 13 * 100 + 13 * 1_000
    assert found["rows_deleted"] == 24_240 + 8 * 101 + curve + 12_000 + 50
    assert found["rows_left"] == 0
    assert 0.05 < found["full_size_cost"] < 1  # USD, by the published formulas


def test_each_result_says_how_it_came_about(executed, results):
    for outcome in executed[1]:
        result = results[outcome.name]
        assert (result.ok, result.size) == (True, "quick")
        assert result.measurements


def test_the_report_finds_every_figure_and_picture_that_it_is_to_show(executed, results):
    folder, _ = executed
    found = content()
    missing = [find(one, results[one.notebook]).missing for one in found.statement]
    assert [why for why in missing if why] == []
    for name, words in found.pictures.items():
        cells = nbformat.read(folder / f"{name}.ipynb", as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        images = [o.metadata["image/png"] for o in outputs if "image/png" in o.get("data", {})]
        texts = [image["alt"] for image in images]
        assert all(texts)
        assert sum(words in text for text in texts) == 1, name
    rows = [row for study in studies().values() for row in report.beside(study, results)]
    assert [published.subject for published, ours in rows if ours is None] == []


def test_the_page_of_a_whole_run_is_small_enough_to_send_and_leads_to_every_notebook(executed):
    folder, outcomes = executed
    page = report.write_report(folder)
    assert page.stat().st_size < 8_000_000
    text = page.read_text(encoding="utf-8")
    assert "did not record what it takes" not in text
    assert [o.name for o in outcomes if f'href="{o.name}.html"' not in text] == []


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
    assert reports.pop("aws") in {"up", "down"}  # on demand: nobody may need it any more
    assert reports == {"postgres": "up", "valkey": "up", "s3": "up"}
