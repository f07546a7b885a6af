"""Published figures say whose they are, and which of a run's are like them."""

import pytest

from workshop_lib import published_figures
from workshop_lib.errors import DataError
from workshop_lib.published import studies
from workshop_lib.report import beside
from workshop_lib.results import Measurement, Result

MEASURED = {
    "10_compare_cold_warm_pooled": ["cold_p50", "pooled_p50", "hit_p50", "open_connection_p50"],
    "11_compare_s3_and_cache": [
        f"read_{s}_{p}" for s in ("store", "cache") for p in ("mean", "min")
    ],
}


@pytest.mark.parametrize(
    ("study", "source"),
    [
        ("cold-warm-pooled", "AWS sample), expected"),
        ("store-and-cache", "not AWS), measured by its author"),
    ],
)
def test_a_study_names_its_source_and_its_durations(study, source):
    assert source in studies()[study].source
    found = published_figures(study)
    assert len(found) >= 5
    assert all(0 < one.low_s <= one.high_s for one in found)


def test_an_unknown_study_is_an_error_that_names_the_known_ones():
    with pytest.raises(DataError, match="only: cold-warm-pooled, store-and-cache"):
        published_figures("warm-cold")


def test_a_quotient_of_published_figures_is_that_of_its_ends():
    for study in studies().values():
        known = {one.subject: one for one in study.figures}
        for quotient in (one for one in study.figures if one.unit == "times"):
            above, below = (known[subject] for subject in quotient.subject.split(" ÷ "))
            assert quotient.low == pytest.approx(above.low / below.high, rel=1e-3)
            assert quotient.high == pytest.approx(above.high / below.low, rel=1e-3)


def test_like_stands_beside_like_and_what_was_not_measured_is_left_out():
    """In a run whose every duration is a millisecond, and that of a hit half of it."""
    results = {
        notebook: Result(
            notebook,
            measurements={n: Measurement(0.5 if n == "hit_p50" else 1.0, "ms") for n in names},
        )
        for notebook, names in MEASURED.items()
    }
    rows = [row for study in studies().values() for row in beside(study, results)]
    found = {one.subject: (str(one), str(ours)) for one, ours in rows}
    assert found["cold, database"] == ("200 to 300 ms", "1 ms")
    assert found["any, cache"] == ("2 ms", "500 µs")
    assert found["opening a connection"] == ("50 to 100 ms", "1 ms")
    assert found["cache, average"] == ("683 µs", "1 ms")
    assert found["pooled, database ÷ any, cache"] == ("2.5 to 5 times", "2 times")
    assert found["S3, average ÷ cache, average"] == ("33.1 times", "1 times")
    assert not {"warm, database", "S3, max", "cache, max"} & found.keys()
    assert None not in {ours for _, ours in rows}
    del results["10_compare_cold_warm_pooled"].measurements["hit_p50"]
    rows = beside(studies()["cold-warm-pooled"], results)
    missing = [one.subject for one, ours in rows if not ours]
    assert missing == ["any, cache", "pooled, database ÷ any, cache"]
