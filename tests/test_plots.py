"""Pictures that can be read: units on the axes, and a text for those who cannot see them."""

import struct
from base64 import b64decode
from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from workshop_lib import plots
from workshop_lib.measure import Moment, Samples

FAST = Samples("fast", tuple(n * 1e-6 for n in range(20, 60)))
SLOW = Samples("slow", tuple(n * 1e-3 for n in range(2, 42)))


def latencies():
    return plots.latencies({"by key, cache": FAST, "by key, database": SLOW}, "A title")


def requests():
    return plots.requests([0.004, 0.00003, 0.00004], ["database", "cache", "cache"], "A title")


def bars():
    groups = {"cache": [1.0, 2.0, 3.0], "database": [4.0, 5.0, 6.0]}
    return plots.bars(groups, ["p50", "p95", "p99"], "A title", "percentile", "time (µs)")


def durations():
    return plots.durations({"one": 0.010, "two": 0.020}, "A title", limit_s=0.015)


PICTURES = {
    "latencies": (latencies, "response time (log scale)", ""),
    "requests": (requests, "request", "response time (µs)"),
    "bars": (bars, "percentile", "time (µs)"),
    "durations": (durations, "time (ms)", ""),
}
pictures = pytest.mark.parametrize(("draw", "x", "y"), PICTURES.values(), ids=PICTURES)


def texts(figure: Figure) -> list[str]:
    """The words written into a picture."""
    return [text.get_text() for text in figure.axes[0].texts]


@pictures
def test_a_picture_has_a_title_and_units_on_its_axes(draw, x, y):
    figure = draw()
    assert type(figure) is Figure
    (axes,) = figure.axes
    assert axes.get_title() == "A title"
    assert axes.get_xlabel().startswith(x)
    assert axes.get_ylabel() == y


@pictures
def test_no_picture_is_kept_by_pyplot(draw, x, y):
    before = plt.get_fignums()
    for _ in range(3):
        draw()
    assert plt.get_fignums() == before


def test_a_p99_is_drawn_of_enough_samples_only():
    many = {"many": Samples("many", tuple(1e-6 * n for n in range(1, 501)))}
    few = {"few": Samples("few", tuple(1e-6 * n for n in range(1, 500)))}
    assert len(plots.latencies(many, "A title").axes[0].lines) == 4
    assert len(plots.latencies(few, "A title").axes[0].lines) == 3


def test_colours_are_six_of_okabe_and_ito_s_each_with_a_marker_and_a_hatch():
    okabe_ito = {
        "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000",
    }  # fmt: skip
    assert set(plots.COLOURS) <= okabe_ito
    for distinct in (plots.COLOURS, plots.MARKERS, plots.HATCHES):
        assert len(distinct) == len(set(distinct)) == 6


CALM = [Moment(1_000.0 + n / 10, 0.0001, "cache") for n in range(10)]
TROUBLE = [*CALM[:4], Moment(1_000.4, 0.02, "database"), Moment(1_000.5, 0.03, "error")]


def legend_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pictures
def test_a_shown_picture_is_a_png_with_a_text_for_those_who_cannot_see_it(draw, x, y, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    plots.show(draw(), "Hits take 30 µs, misses 4 ms.")
    ((data, metadata),) = [image._repr_mimebundle_() for image in shown]
    assert metadata["image/png"]["alt"] == "Hits take 30 µs, misses 4 ms."
    png = b64decode(data["image/png"])
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert 700 < width < 1_100
    assert 100 < height < 1_100


def test_a_shown_picture_has_its_text_on_a_page_as_well_where_jupyterlab_keeps_it(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    plots.show(bars(), 'Hits "fast", misses <slow>.')
    (picture,) = shown
    data, _ = picture._repr_mimebundle_()
    assert repr(picture) == 'Hits "fast", misses <slow>.'
    assert set(data) == {"image/png", "text/html"}
    source = f"data:image/png;base64,{data['image/png']}"
    alt = "Hits &quot;fast&quot;, misses &lt;slow&gt;."
    assert data["text/html"] == f'<img alt="{alt}" src="{source}">'


@pytest.fixture
def noted() -> Iterator[Callable[..., None]]:
    """Sets notes, which are gone after the test."""
    owners: set[object] = set()

    def note(owner: object, text: str = "") -> None:
        owners.add(owner)
        plots.set_note(owner, text)

    yield note
    for owner in owners:
        plots.set_note(owner)


def notes(figure: Figure) -> list[str]:
    return [line for text in figure.texts for line in text.get_text().splitlines()]


def shown_alt(figure: Figure, monkeypatch) -> str:
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    plots.show(figure, "A picture.")
    (image,) = shown
    return image._repr_mimebundle_()[1]["image/png"]["alt"]


@pictures
def test_a_picture_carries_the_notes_that_were_in_force_when_it_was_drawn(draw, x, y, noted):
    before = draw()
    noted("one", "emulated latency: cache 5 ms")
    during = draw()
    noted("one")
    assert [notes(picture) for picture in (before, during, draw())] == [
        [], ["emulated latency: cache 5 ms"], [],
    ]  # fmt: skip


def test_a_shown_picture_has_its_notes_once_and_in_its_text_as_well(noted, monkeypatch):
    noted("one", "emulated latency: cache 5 ms")
    drawn = bars()
    expected = "A picture. Emulated latency: cache 5 ms."
    assert shown_alt(drawn, monkeypatch) == shown_alt(drawn, monkeypatch) == expected
    noted("one")
    assert shown_alt(drawn, monkeypatch) == expected
    assert notes(drawn) == ["emulated latency: cache 5 ms"]
    assert shown_alt(bars(), monkeypatch) == "A picture."


def test_a_picture_of_one_s_own_gets_the_note_when_it_is_shown(noted, monkeypatch):
    noted("one", "a note")
    own = Figure()
    own.subplots().plot([1, 2])
    assert shown_alt(own, monkeypatch) == "A picture. A note."
    assert notes(own) == ["a note"]


def test_notes_of_several_owners_stand_below_each_other_and_the_same_one_once(noted):
    noted("one", "a note")
    noted("two", "another")
    noted("three", "a note")
    assert notes(bars()) == ["a note", "another"]
    noted("two", "changed")
    assert notes(bars()) == ["a note", "changed"]


def test_the_note_is_within_what_is_shown_and_covers_nothing(noted, monkeypatch):
    sizes = []
    for text in ("", "a note"):
        noted("one", text)
        shown = []
        monkeypatch.setattr(plots, "display", shown.append)
        plots.show(bars(), "A picture.")
        sizes.append(struct.unpack(">II", shown[0].png[16:24])[1])
    assert sizes[1] > sizes[0] + 5
