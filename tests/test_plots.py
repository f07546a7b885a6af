"""Pictures that can be read: units on the axes, and a text for those who cannot see them."""

import struct
from base64 import b64decode
from collections.abc import Callable, Iterator
from itertools import pairwise

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_rgb
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
    "latencies": (latencies, "time until the answer is here (log scale)", ""),
    "requests": (requests, "request", "time until the answer is here (µs)"),
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


def test_latencies_show_every_sample_and_the_median_of_each_subject():
    (axes,) = latencies().axes
    assert [len(dots.get_offsets()) for dots in axes.collections] == [40, 40]
    assert texts(latencies()) == ["p50 39.0 µs", "p50 21.00 ms"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["by key, cache\n(n = 40)", "by key, database\n(n = 40)"]
    # For each: the interval, the p50 and the p95; 40 samples are too few for a p99.
    assert len(axes.lines) == 2 * 3
    assert axes.get_xscale() == "log"


def test_a_p99_is_drawn_of_enough_samples_only():
    many = {"many": Samples("many", tuple(1e-6 * n for n in range(1, 501)))}
    few = {"few": Samples("few", tuple(1e-6 * n for n in range(1, 500)))}
    assert len(plots.latencies(many, "A title").axes[0].lines) == 4
    assert len(plots.latencies(few, "A title").axes[0].lines) == 3


def test_lines_of_one_kind_share_a_colour():
    samples = {
        "by key, cache": FAST, "by key, database": SLOW, "report, cache": FAST,
    }  # fmt: skip
    (axes,) = plots.latencies(samples, "A title").axes
    first, second, third = (tuple(dots.get_facecolor()[0]) for dots in axes.collections)
    assert first == third != second


def test_requests_are_bars_in_their_order_coloured_by_source():
    (axes,) = requests().axes
    places = {round(bar.get_x() + bar.get_width() / 2): bar for bar in axes.patches}
    assert {n: round(bar.get_height()) for n, bar in places.items()} == {1: 4000, 2: 30, 3: 40}
    assert places[2].get_facecolor() == places[3].get_facecolor() != places[1].get_facecolor()
    assert places[2].get_hatch() != places[1].get_hatch()
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["answered by the database (1)", "answered by the cache (2)"]
    assert sorted(texts(requests())) == ["30.0 µs", "4.00 ms", "40.0 µs"]


def test_the_cache_has_one_colour_in_every_picture():
    colours = {
        "requests": {tuple(bar.get_facecolor()) for bar in requests().axes[0].patches[1:]},
        "latencies": {tuple(latencies().axes[0].collections[0].get_facecolor()[0][:3])},
        "timeline": {
            tuple(plots.timeline({"": CALM}, "").axes[0].collections[0].get_facecolor()[0])
        },
    }
    wanted = to_rgb(plots.LOOKS["cache"][0])
    found = {name: {colour[:3] for colour in each} for name, each in colours.items()}
    assert found == {name: {wanted} for name in colours}


def test_a_few_dots_are_bolder_than_many():
    few, many = (Samples("x", tuple(n * 1e-6 for n in range(1, n + 1))) for n in (20, 400))
    dots = plots.latencies({"few": few, "many": many}, "A title").axes[0].collections
    assert dots[0].get_alpha() > 2 * dots[1].get_alpha()
    assert dots[0].get_sizes()[0] > 2 * dots[1].get_sizes()[0]


def test_the_legend_of_lines_covers_none_of_them():
    series = {"in the database": [1.0, 2.0, 2.0], "seen by readers": [1.0, 1.0, 2.0]}
    figure = plots.lines([0.0, 1.0, 2.0], series, "A title", "x (s)", "y", steps=True)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend, label = axes.get_legend().get_window_extent(), axes.xaxis.label.get_window_extent()
    assert legend.y1 < label.y0 < axes.get_window_extent().y0


def test_whole_numbers_have_whole_ticks_and_none_below_what_there_is():
    shown = plots.histogram([0, 1, 4, 4, 12], "A title", "orders", "users").axes[0]
    low, high = shown.get_xlim()
    assert [tick for tick in shown.get_xticks() if low <= tick <= high] == list(range(13))
    served = [Moment(5.0, n / 10, "database") for n in range(1, 21)]
    readers = plots.waits({"": served}, "A title").axes[0].get_yticks()
    assert [tick for tick in readers if tick % 1] == []


def test_bars_stand_side_by_side_in_groups():
    (axes,) = bars().axes
    assert [bar.get_height() for bar in axes.patches] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["p50", "p95", "p99"]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(edges))


def test_a_single_series_needs_no_legend():
    (axes,) = plots.bars({"only": [1.0]}, ["a"], "A title", "x", "y (s)").axes
    assert axes.get_legend() is None


def test_durations_mark_their_limit_only_within_the_picture():
    (axes,) = durations().axes
    assert [bar.get_width() for bar in axes.patches] == [10.0, 20.0]
    assert [line.get_xdata()[0] for line in axes.lines] == [15.0]
    (without,) = plots.durations({"one": 0.010}, "A title", limit_s=5.0).axes
    assert list(without.lines) == []


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


def test_a_time_line_has_a_panel_a_run_and_a_dot_a_request():
    figure = plots.timeline(
        {"calm": CALM, "trouble": TROUBLE}, "A title", {"trouble": [(1_000.35, 1_000.55)]}
    )
    calm, trouble = figure.axes
    assert figure.get_suptitle() == "A title"
    assert [axes.get_title(loc="left") for axes in (calm, trouble)] == ["calm", "trouble"]
    assert legend_of(calm) == ["cache (10)"]
    assert legend_of(trouble) == ["cache (4)", "database (1)", "error (1)"]
    times = [
        tuple(round(float(x), 3) for x, _ in dots.get_offsets()) for dots in trouble.collections
    ]
    assert times == [(0.0, 0.1, 0.2, 0.3), (0.4,), (0.5,)]
    waits = [
        tuple(round(float(y), 3) for _, y in dots.get_offsets()) for dots in trouble.collections
    ]
    assert waits[1:] == [(20.0,), (30.0,)]
    assert len(calm.patches) == 0
    (shade,) = trouble.patches
    assert [round(float(x), 2) for x in (shade.get_x(), shade.get_width())] == [0.35, 0.2]
    assert "grey: trouble" in trouble.get_xlabel()


def test_a_time_line_tells_sources_apart_by_colour_and_marker():
    assert len({colour for colour, _ in plots.LOOKS.values()}) == len(plots.LOOKS)
    assert len({marker for _, marker in plots.LOOKS.values()}) == len(plots.LOOKS)


def test_waits_draws_a_line_a_request_ordered_by_when_it_was_served():
    late = [Moment(5.00, 0.30, "database"), Moment(5.01, 0.10, "database")]
    figure = plots.waits({"naive": late, "shared": late[:1]}, "A title")
    naive, shared = figure.axes
    drawn = [[tuple(map(round, line.get_xdata())), line.get_ydata()[0]] for line in naive.lines]
    assert drawn == [[(10, 110), 1], [(0, 300), 2]]
    assert len(shared.lines) == 1
    assert naive.get_xlabel() == "time since the first asked (ms)"


def test_dots_draw_each_value_and_leave_out_what_there_is_not():
    figure = plots.dots(
        ["lru", "none"],
        {"steady": {"measured": [0.5, 0.4], "on paper": [0.6, None]}},
        "A title",
        "hit ratio",
        {"steady": 0.7},
    )
    (axes,) = figure.axes
    found = [[tuple(map(float, xy)) for xy in dots.get_offsets()] for dots in axes.collections]
    assert found == [[(0.5, 0.0), (0.4, 1.0)], [(0.6, 0.0)]]
    assert [line.get_xdata()[0] for line in axes.lines] == [0.7]
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["measured", "on paper", "best possible"]


def test_streams_are_a_dot_a_request():
    figure = plots.streams({"one": [3, 1, 2], "two": [0]}, "A title")
    one, _ = figure.axes
    (cloud,) = one.collections
    assert [tuple(map(int, xy)) for xy in cloud.get_offsets()] == [(0, 3), (1, 1), (2, 2)]
    assert one.get_ylabel().startswith("key number")


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
    noted("one", "emulated distance: cache 5 ms")
    during = draw()
    noted("one")
    assert [notes(picture) for picture in (before, during, draw())] == [
        [], ["emulated distance: cache 5 ms"], [],
    ]  # fmt: skip


def test_a_shown_picture_has_its_notes_once_and_in_its_text_as_well(noted, monkeypatch):
    noted("one", "emulated distance: cache 5 ms")
    drawn = bars()
    expected = "A picture. Emulated distance: cache 5 ms."
    assert shown_alt(drawn, monkeypatch) == shown_alt(drawn, monkeypatch) == expected
    noted("one")
    assert shown_alt(drawn, monkeypatch) == expected
    assert notes(drawn) == ["emulated distance: cache 5 ms"]
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


def test_a_dashboard_has_a_panel_with_a_scale_of_its_own_for_each_label():
    rates = {"SELECT": ([0, 1, 2], [10, 20, 30]), "INSERT": ([0, 2], [1, 2])}
    figure = plots.dashboard(
        {"statements/s": rates, "execution (s)": {"all": ([0, 1], [0.1, 0.2])}},
        "A title",
        dots=["execution (s)"],
    )
    top, bottom = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["statements/s", "execution (s)"]
    assert bottom.get_xlabel() == "time since the beginning (s)"
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["SELECT", "INSERT"]
    assert top.get_ylim()[1] > 25 > bottom.get_ylim()[1]
    assert [line.get_linestyle() for line in bottom.lines] == ["None"]


def test_what_happened_is_written_once_above_the_curves():
    panels = {"rows/s": {"all": ([0, 1], [1, 2])}, "mean (ms)": {"all": ([0, 1], [3, 4])}}
    figure = plots.dashboard(panels, "A title", marks={"half-way": 0.5})
    figure.draw_without_rendering()
    top, bottom = figure.axes
    (word,) = top.texts
    assert word.get_text() == "half-way"
    assert word.get_window_extent().y0 > top.get_window_extent().y1
    assert list(bottom.texts) == []
    # Those that are close together do not meet, and the lines are in both panels.
    near = plots.dashboard(panels, "A title", marks={"the last": 0.55, "half-way": 0.5})
    near.draw_without_rendering()
    first, last = near.axes[0].texts
    assert [first.get_text(), last.get_text()] == ["half-way", "the last"]
    assert first.get_window_extent().x1 < last.get_window_extent().x0
    assert [axes.lines[-1].get_xdata()[0] for axes in (top, bottom)] == [0.5, 0.5]
