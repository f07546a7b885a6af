"""Costs against examples worked by hand, and prices from a file that says how old it is."""

from dataclasses import fields, replace
from datetime import date

import pytest

from workshop_lib.costs import (
    Prices,
    Workload,
    insert_dpu,
    monthly_cost,
    monthly_saving,
    paying_hit_ratio,
    run_cost,
    transaction_dpu,
    verdict,
)
from workshop_lib.errors import DataError
from workshop_lib.prices import FILE, load_prices, price_list

PRICES = load_prices()
MONTH_S = 730 * 3600  # 2,628,000 s
FUNCTION = {"function_ms": 20, "function_hit_ms": 2}


def cost(**changes):
    cached = changes.pop("cached", True)
    given = {"reads_per_s": 100, "stored_gb": 0, **changes}
    return monthly_cost(Workload(**given), PRICES, cached=cached).items


# --- worked by hand


@pytest.mark.parametrize(
    ("workload", "item", "usd"),
    [
        # 100 reads/s × 2,628,000 s = 262.8 million, × 0.05 DPU = 13.14 million DPU, × 8 USD.
        # Behind a cache nine of ten reads hit: a tenth of that.
        ({"read_dpu": 0.05, "cached": False}, ("database", "reads"), 105.12),
        ({"read_dpu": 0.05}, ("database", "reads"), 10.512),
        # 2 writes/s = 5.256 million, × 0.1 DPU = 0.5256 million DPU. 10 GB × 0.33 USD.
        ({"writes_per_s": 2, "write_dpu": 0.1}, ("database", "writes"), 4.2048),
        ({"stored_gb": 10}, ("database", "storage"), 3.30),
        # 2 GB × 730 h × 0.084 USD; and 10 MB is charged as 100 MB: 0.1 × 730 × 0.084.
        ({"cached_gb": 2}, ("cache", "memory"), 122.64),
        ({"cached_gb": 0.01}, ("cache", "memory"), 6.132),
        # Items of 3.2 KB are 3.2 ECPU. 236.52 million hits × 3.2 = 756.864 million; 26.28 million
        # misses × (1 to look + 3.2 to fill) = 110.376 million; 10 writes/s = 26.28 million more.
        # In all 893.52 million ECPU × 0.0023 USD. An item below a kilobyte is a whole ECPU:
        # 236.52 million + 26.28 million × 2.
        ({"item_bytes": 3_200, "writes_per_s": 10}, ("cache", "requests"), 2.055096),
        ({"item_bytes": 100}, ("cache", "requests"), 0.664884),
        # 262.8 million GET × 0.0004 USD a thousand; a tenth of it with the cache.
        # 1 PUT/s = 2.628 million × 0.005 USD a thousand. 1,000 GB × 0.023 USD.
        ({"source": "store", "cached": False}, ("store", "reads"), 105.12),
        ({"source": "store"}, ("store", "reads"), 10.512),
        ({"source": "store", "writes_per_s": 1}, ("store", "writes"), 13.14),
        ({"source": "store", "stored_gb": 1_000}, ("store", "storage"), 23.0),
        # 262.8 million invocations × 0.20 USD a million. Without a cache 20 ms each, 128 MB:
        # 5,256,000 s × 0.125 GB = 657,000 GB-s × 0.0000133334. With it nine of ten take 2 ms:
        # 525,600 + 473,040 = 998,640 s × 0.125 GB = 124,830 GB-s.
        ({**FUNCTION, "cached": False}, ("functions", "invocations"), 52.56),
        ({**FUNCTION, "cached": False}, ("functions", "duration"), 8.7600),
        (FUNCTION, ("functions", "duration"), 1.6644),
        # 262.8 million items of 10 KB (read or filled) = 2,628 GB, half of it, × 0.01 USD.
        ({"item_bytes": 10_000, "other_zone": 0.5}, ("transfer", "between zones"), 13.14),
    ],
)
def test_each_item_of_a_month_s_bill(workload, item, usd):
    assert cost(**workload)[item] == pytest.approx(usd, rel=1e-4)


def test_the_whole_is_the_sum_of_its_services_and_without_a_cache_that_costs_nothing():
    workload = Workload(100, cached_gb=2, stored_gb=10)
    for cached in (True, False):
        found = monthly_cost(workload, PRICES, cached=cached)
        assert found.total == pytest.approx(sum(found.by_service.values()))
        assert bool(found.by_service["cache"]) == cached


# --- when does it pay?


def test_at_the_paying_hit_ratio_nothing_is_saved_and_nothing_lost():
    workload = Workload(50, writes_per_s=1, cached_gb=0.5)
    ratio = paying_hit_ratio(workload, PRICES)
    assert 0 < ratio < 1
    assert monthly_saving(replace(workload, hit_ratio=ratio), PRICES) == pytest.approx(0, abs=1e-9)
    assert monthly_saving(replace(workload, hit_ratio=ratio + 0.01), PRICES) > 0


def test_the_verdict_says_what_a_cache_saves_costs_or_would_need():
    pays, seldom, misses = Workload(100), Workload(0.1, cached_gb=10), Workload(50, hit_ratio=0.01)
    assert f"saves {monthly_saving(pays, PRICES):,.2f} USD a month" in verdict(pays, PRICES)
    assert paying_hit_ratio(seldom, PRICES) is None
    assert "does not pay for itself, whatever its hit ratio" in verdict(seldom, PRICES)
    assert f"{-monthly_saving(seldom, PRICES):,.2f} USD" in verdict(seldom, PRICES)
    needed = paying_hit_ratio(misses, PRICES)
    assert f"above {needed:.2f} it would pay for itself" in verdict(misses, PRICES)


# --- what is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hit_ratio", 1.1),
        ("item_bytes", float("nan")),
        ("source", "tape"),
    ],
)
def test_an_input_out_of_its_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is "):
        Workload(**{"reads_per_s": 1, name: value})


# --- prices


def test_old_prices_are_warned_about_and_new_ones_are_not():
    assert PRICES.warning(date(2026, 11, 21)) == ""
    assert "These prices are 442 days old (of 2026-10-15" in PRICES.warning(date(2027, 12, 31))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.replace("usd = 8.00", "usd = -8.00"),
            r"float` >= 0.0 - at .*million_dpu\.usd",
        ),
        (lambda t: t.replace("usd = 8.00", 'usd = "8"'), r"float`, got .* at .*million_dpu\.usd"),
        (lambda t: t.partition("[transfer_out_gb]")[0], "missing required field `transfer_out_gb`"),
        (lambda t: t + "\n[tape]\nusd = 1\n", "unknown field `tape`"),
        (lambda t: t.replace("as_of = 2026-10-15", 'as_of = "autumn"'), r"date - at .*as_of"),
        (lambda t: t + "[", "cannot be read"),
    ],
)
def test_a_file_of_prices_that_is_wrong_says_where(tmp_path, change, says):
    file = tmp_path / "prices.toml"
    file.write_text(change(FILE.read_text()))
    with pytest.raises(DataError, match=says):
        load_prices(file)


@pytest.mark.parametrize(
    ("dpu", "published"),
    [
        # Aurora DSQL User Guide, "How billing works": the examples, with their compute time.
        (transaction_dpu(compute_seconds=0.003), 0.00675),
        (transaction_dpu(bytes_read=23_500, compute_seconds=0.016), 0.059),
        (insert_dpu(1, 100), 0.06175),
        (insert_dpu(100, 100), 0.70875),
    ],
)
def test_the_user_guide_s_examples_come_out_right(dpu, published):
    assert dpu == pytest.approx(published, rel=1e-3)


def test_writing_is_charged_by_the_transaction_and_by_its_bytes():
    # 8 rows of 128 bytes are 1,024: as dear as one row, but for the time to compute.
    least = transaction_dpu(rows_written=1)
    assert transaction_dpu(rows_written=8) == pytest.approx(least)
    assert transaction_dpu(rows_written=9) > least


def test_a_run_of_a_load_test_worked_by_hand():
    # 10,000 INSERTs of one small row × 0.06175192 DPU × 8 USD a million.
    # Deleted in 4 transactions of 2,500 rows: each is charged like an INSERT of as many, and for
    # reading 250,000 bytes.
    # 1,020 invocations; 2,040 s × 512 MB / 1,024 = 1,020 GB-s. 3,000 requests. A million bytes.
    found = run_cost(
        PRICES, statements=10_000, rows_each=1, row_bytes=100, reading_dpu=5.0, invocations=1_020,
        function_seconds=2_040, function_mb=512, requests=3_000, moved_bytes=1e6,
        stored_seconds=MONTH_S,
    ).items  # fmt: skip
    assert found["database", "writing"] == pytest.approx(10_000 * 0.06175192 * 8e-6, rel=1e-5)
    each = 2_500 * 128 * 0.00004883 + 2_500 * 0.0008 + (250_000 + 2_048) * 0.00000183105
    assert found["database", "deleting"] == pytest.approx(4 * each * 8e-6)
    assert found["database", "reading"] == pytest.approx(0.00004)
    assert found["database", "storage"] == pytest.approx(0.001 * 0.33)  # a million bytes
    assert found["functions", "requests"] == pytest.approx(0.000204)
    assert found["functions", "time"] == pytest.approx(0.013600068)
    assert found["queue", "requests"] == pytest.approx(0.0012)
    assert found["transfer", "between zones"] == pytest.approx(0.00002)


def test_rows_that_are_kept_are_not_deleted_and_what_leaves_aws_is_dearer():
    how = {"statements": 10, "rows_each": 100, "row_bytes": 300, "moved_bytes": 1e9}
    found = run_cost(PRICES, **how, kept=True, outside=True).items
    assert found["database", "deleting"] == 0
    assert found["transfer", "out"] == pytest.approx(0.09)
    assert run_cost(PRICES, **how).items["database", "deleting"] > 0
    assert run_cost(PRICES, statements=0, rows_each=1, row_bytes=100).total == 0


def test_the_price_list_shows_every_price_with_the_day_on_which_it_was_checked_or_that_it_was_not():
    found = price_list()
    assert set(found.index) == {f.name for f in fields(Prices)} - {"region", "as_of"}
    assert found.loc["lambda_gb_second", "USD"] == "0.0000133334"
    assert found.loc["dsql_million_dpu", "checked"] == str(load_prices().as_of)
    assert "not checked" in found.loc["s3_gb_month", "checked"]
    assert not (found == "–").any(axis=None)  # each has a unit and a source
