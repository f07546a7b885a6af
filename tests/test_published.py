"""Published figures say whose they are."""

import pytest

from workshop_lib import published_figures
from workshop_lib.errors import DataError
from workshop_lib.published import studies


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
