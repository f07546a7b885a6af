"""Published figures: read from data, with their source, and drawn apart from one's own."""

import pytest

from workshop_lib import plots, published_figures
from workshop_lib.errors import DataError
from workshop_lib.measure import Samples


def test_the_figures_of_the_demonstration_are_those_of_the_document():
    found = {one.subject: (one.low_s, one.high_s) for one in published_figures("cold-warm-pooled")}
    assert found == {
        "cold, database": (0.200, 0.300),
        "warm, database": (0.008, 0.015),
        "pooled, database": (0.005, 0.010),
        "any, cache": (0.002, 0.002),
        "opening a connection": (0.050, 0.100),
    }


def test_the_figures_of_store_and_cache_are_microseconds_of_the_document():
    found = {one.subject: round(one.low_s * 1e6) for one in published_figures("store-and-cache")}
    assert found == {
        "cache, average": 683, "cache, max": 1_890, "cache, min": 606,
        "S3, average": 22_622, "S3, max": 224_836, "S3, min": 10_334,
    }  # fmt: skip


@pytest.mark.parametrize("study", ["cold-warm-pooled", "store-and-cache"])
def test_each_figure_names_its_source_one_a_study(study):
    found = published_figures(study)
    assert len({one.source for one in found}) == 1
    assert all(0 < one.low_s <= one.high_s for one in found)


def test_an_unknown_study_is_an_error_that_names_the_known_ones():
    with pytest.raises(DataError, match="only: cold-warm-pooled, store-and-cache"):
        published_figures("warm-cold")


def test_measured_and_published_figures_stand_in_panels_of_their_own():
    measured = {"pooled": Samples("pooled", (0.001, 0.002, 0.003))}
    published = published_figures("cold-warm-pooled")
    own, theirs = plots.beside_published(measured, published, "A title").axes
    assert own.get_title(loc="left").startswith("measured by you")
    assert theirs.get_title(loc="left").startswith("published, not measured here:")
    assert [label.get_text() for label in own.get_yticklabels()] == ["pooled"]
    assert len(theirs.get_yticklabels()) == len(published)
    assert [text.get_text().strip() for text in own.texts] == ["2.00 ms"]
    written = [text.get_text().strip() for text in theirs.texts]
    assert written[0] == "200 ms to 300 ms"
    assert written[3] == "2 ms"
