"""Published figures stand beside those of a run that are like them, and no figure divides them."""

import pytest

from workshop_lib import published_figures
from workshop_lib.errors import DataError
from workshop_lib.published import beside_published, studies
from workshop_lib.results import Measurement, Result


def run(**more):
    """A run whose every duration is a millisecond, and that of a hit half of it."""
    found = {}
    for study in studies().values():
        for like in study["like"]:
            result = found.setdefault(like["notebook"], Result(like["notebook"], **more))
            for name in like["figures"]:
                value = 500.0 if name == "hit_p50" else 1_000.0
                result.record(name, Measurement(value, "µs", 200, value * 0.9, value * 1.1))
    return found


@pytest.mark.parametrize("study", ["cold-warm-pooled", "store-and-cache"])
def test_each_figure_names_its_source_one_a_study(study):
    found = published_figures(study)
    assert len({one.source for one in found}) == 1
    assert all(0 < one.low_s <= one.high_s for one in found)


def test_a_source_says_whose_figures_they_are():
    (store,) = {one.source for one in published_figures("store-and-cache")}
    (demonstration,) = {one.source for one in published_figures("cold-warm-pooled")}
    assert "not AWS, measured by its author" in store.replace(")", "")
    assert "AWS sample), expected" in demonstration


def test_an_unknown_study_is_an_error_that_names_the_known_ones():
    with pytest.raises(DataError, match="only: cold-warm-pooled, store-and-cache"):
        published_figures("warm-cold")


@pytest.mark.parametrize(
    ("subject", "published", "here"),
    [
        ("cold, database", "200 to 300 ms", "1,000 µs"),
        ("any, cache", "2 ms", "500 µs"),
        ("cache, average", "683 µs", "1,000 µs"),
        ("pooled, database ÷ any, cache", "2.5 to 5 times", "2 times"),
        ("S3, average ÷ cache, average", "33.1 times", "1 times"),
    ],
)
def test_a_figure_stands_beside_the_published_one(subject, published, here):
    (row,) = [row for row in beside_published(run()) if row.subject == subject]
    figure = str(row.figure).replace("1 ms", "1,000 µs")
    assert (row.published, figure) == (published, here)


def test_averages_stand_beside_means_and_what_has_no_like_is_left_out():
    figures = {like["published"][0]: like["figures"] for study in studies().values()
               for like in study["like"] if len(like["published"]) == 1}  # fmt: skip
    assert all(
        name.endswith("_mean") for subject, (name,) in figures.items() if "average" in subject
    )
    assert not [subject for subject in figures if "warm" in subject or "max" in subject]


def test_without_the_figure_nothing_stands_beside():
    text = run()
    text["07_meet_dsql"].record("open_connection_p50", Measurement("none", "µs"))
    assert [row.subject for row in beside_published(text) if row.figure is None] == [
        "opening a connection"
    ]
    assert not [row for row in beside_published({}) if row.figure]
