"""Statistics in a file: each version's columns are read, and what is broken is one sentence."""

import csv
import io

import pytest

from workshop_lib.advise.statistics_file import HIDDEN, Statistic, parse
from workshop_lib.errors import DataError

QUERY = 'SELECT "a",\n       b FROM t WHERE name = $1'
PLAN = """\
EXPLAIN ANALYZE VERBOSE SELECT * FROM test_table;
                     QUERY PLAN
----------------------------------------------------
 Index Only Scan using test_table_pkey on t  (cost=1.05..2.05 rows=1000000 width=36) (actual \
time=2.973..4.482 rows=120 loops=1)
   -> Storage Scan on test_table_pkey (cost=1.05..2.05 rows=9 width=36) (actual rows=7 loops=1)
 Planning Time: 11.500 ms
 Execution Time: 4.500 ms
 Statement DPU Estimate:
   Compute: 0.01607 DPU
   Read: 0.04312 DPU
   Write: 0.00000 DPU
   Total: 0.05919 DPU
(12 rows)

"""


def table(*rows):
    """The text of a CSV file."""
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("query,calls,mean_exec_time,rows", [QUERY, 10, 2.5, 30]),  # PostgreSQL 13 to 18
        ("calls,total_exec_time,rows,query", [10, 25, 30, QUERY]),
        ("QUERY,Calls,Total_Time,Rows", [QUERY, 10, 25, 30]),  # 12 and before
        ("query,calls,mean_time,rows", [QUERY, 10, 2.5, 30]),
        ("query,calls,mean_ms,rows", [QUERY, 10, 2.5, 30]),  # of one's own
        ("query,calls,total_exec_time,total_plan_time,rows", [QUERY, 10, 20, 5, 30]),
        ("query,calls,mean_exec_time,mean_plan_time,rows", [QUERY, "1e1", "2", ".5", " 30 "]),
        ("queryid,toplevel,query,calls,total_time,mean_exec_time,rows",
         [7, "t", QUERY, 10, 25, 99, 30]),
    ],
)  # fmt: skip
def test_the_columns_of_every_version_mean_the_same(columns, values):
    (found,), hidden = parse(table(columns.split(","), values))
    assert (found, hidden) == (Statistic(QUERY, 2.5, rows=3.0, calls=10), 0)


def test_dpu_and_days_are_read_where_they_are_and_else_not_known():
    names = ["query", "calls", "mean_ms", "dpu", "days"]
    (one, two), _ = parse(table(names, ["TABLE a", 4, 1, 0.5, 30], ["TABLE b", 4, 1, "", ""]))
    assert (one.dpu, one.days) == (0.5, 30)
    assert (two.dpu, two.days) == (None, None)
    (one,), _ = parse(table(["query", "calls", "mean_ms", "total_dpu"], ["TABLE a", 4, 1, 2]))
    assert one.dpu == 0.5


def test_one_statement_of_several_users_is_one():
    names = ["query", "calls", "mean_ms", "rows", "dpu"]
    (one,), _ = parse(table(names, ["TABLE a", 30, 1, 30, 0.1], ["TABLE a", 10, 5, 90, 0.5]))
    assert (one.calls, one.mean_ms, one.rows) == (40, 2.0, 3.0)
    assert one.dpu == pytest.approx(0.2)
    (one,), _ = parse(table(names, ["TABLE a", 30, 1, 30, 0.1], ["TABLE a", 10, 5, 90, ""]))
    assert one.dpu is None


def test_what_was_never_called_or_runs_in_a_function_is_left_out_and_hidden_texts_are_counted():
    names = ["query", "calls", "mean_ms", "toplevel"]
    rows = [["TABLE a", 1, 1, "t"], ["TABLE b", 1, 1, "f"], ["TABLE c", 0, 0, "t"]]
    found, hidden = parse(table(names, *rows, *[[HIDDEN, 5, 1, "t"]] * 2))
    assert ([one.query for one in found], hidden) == (["TABLE a"], 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "It is no CSV"),
        ("query,calls\n", "names no column mean_exec_time"),
        ("query;calls;mean_ms\nTABLE a;1;1\n", "names no column query and no calls"),
        ("# my report\nquery,calls,mean_ms\n", "more values than its first line"),
        ("query,calls,mean_ms\n", "No statement in it can be read"),
        (f"query,calls,mean_ms\n{HIDDEN},1,1\n", "sign in as a member of pg_read_all_stats"),
        ("query,calls,mean_ms\nTABLE a,1\n", "has no time"),
        ("query,calls,mean_ms\nSELECT a, b,1,1\n", "more values than its first line"),
        ("query,calls,mean_ms\nTABLE a,1,1\nSELECT a, b,1,1\n", "Expected 3 fields in line 3"),
        ('query,calls,mean_ms\n"TABLE a,1,1\n', "It is no CSV"),
        ("query,calls,mean_ms\nTABLE a,x,1\n", "calls = 'x'; it must be a number"),
        ("query,calls,mean_ms\nTABLE a,1,inf\n", "mean_ms = 'inf'"),
        (PLAN.replace("EXPLAIN", "-- EXPLAIN"), "comes without its statement"),
        (PLAN.partition(" Statement DPU")[0] + PLAN, "no `Statement DPU Estimate` in the plan of"),
    ],
)
def test_a_broken_file_is_one_sentence_that_says_what_is_wrong(text, said):
    with pytest.raises(DataError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_of_dsql_has_its_statement_time_rows_and_dpu_at_least_a_transaction_s():
    (found,), hidden = parse(PLAN)
    assert (found.query, found.mean_ms, found.rows) == ("SELECT * FROM test_table", 16.0, 120)
    assert found.dpu == pytest.approx(0.05919)  # the User Guide's example, with its sum
    assert (found.calls, found.days, hidden) == (None, None, 0)
    least = PLAN.replace("0.04312 DPU", "0.00100 DPU (Transaction minimum: 0.00375)")
    (found,), _ = parse(least)
    assert found.dpu == pytest.approx(0.01607 + 0.00375)


@pytest.mark.parametrize(
    ("asked", "query"),
    [
        ("explain (analyze, verbose)\n SELECT *\nFROM t WHERE id = 5;",
         "SELECT *\nFROM t WHERE id = $1"),
        ("EXPLAIN ANALYZE VERBOSE INSERT INTO t VALUES (1, 'a')", "INSERT INTO t VALUES ($1, $2)"),
        ("SET x = 1;\n\n  EXPLAIN ANALYZE VERBOSE TABLE t;", "TABLE t"),
        ("EXPLAIN ANALYZE VERBOSE what is this", "what is this"),
    ],
)  # fmt: skip
def test_the_statement_before_a_plan_has_parameters_for_its_values(asked, query):
    first = PLAN.splitlines()[0]
    (_, found), _ = parse(PLAN + PLAN.replace(first, asked))
    assert found.query == query
