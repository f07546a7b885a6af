"""Pictures that can be read: units on the axes, and a text for those who cannot see them."""

import struct
from base64 import b64decode
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import workshop_lib


def bars():
    return workshop_lib.plots.bars(
        {"cache": [1.0], "database": [4.0]}, ["p50"], "A title", "of what", "µs"
    )


@pytest.fixture
def shown(monkeypatch) -> list[Any]:
    """What was shown."""
    found: list[Any] = []
    monkeypatch.setattr(workshop_lib.plots, "display", found.append)
    return found


def test_a_shown_picture_is_a_png_with_a_text_for_those_who_cannot_see_it(shown):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    workshop_lib.plots.show(bars(), 'Hits "fast", misses <slow>.')
    assert plt.get_fignums() == before  # pyplot would keep it for ever
    (picture,) = shown
    data, metadata = picture._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == repr(picture) == 'Hits "fast", misses <slow>.'
    png = b64decode(data["image/png"])
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert 700 < width < 1_100
    assert 100 < height < 1_100
    # JupyterLab keeps the text on its pages only where it is part of the HTML.
    source = f"data:image/png;base64,{data['image/png']}"
    alt = "Hits &quot;fast&quot;, misses &lt;slow&gt;."
    assert data["text/html"] == f'<img alt="{alt}" src="{source}">'


@pytest.mark.parametrize("high", [1_500, 4_000, 90_000, 3_000_000])
def test_a_logarithmic_axis_has_two_labels_or_more_however_short_it_is(high):
    figure = workshop_lib.plots.lines(
        [1, 2], {"one": [690, high]}, "A title", "workers", "rows/s", log_y=True
    )
    figure.canvas.draw()
    (axes,) = figure.axes
    low, top = axes.get_ylim()
    assert len([place for place in axes.get_yticks() if low <= place <= top]) >= 2


@pytest.fixture
def noted() -> Iterator[Callable[..., None]]:
    """Sets notes, which are gone after the test."""
    owners: set[object] = set()

    def note(owner: object, text: str = "") -> None:
        owners.add(owner)
        workshop_lib.plots.set_note(owner, text)

    yield note
    for owner in owners:
        workshop_lib.plots.set_note(owner)


def notes(figure: Any) -> list[str]:
    return [line for text in figure.texts for line in text.get_text().splitlines()]


def test_a_picture_has_the_notes_of_when_it_was_drawn_once_and_in_its_text_as_well(noted, shown):
    from matplotlib.figure import Figure

    before = bars()
    noted("one", "emulated latency: cache 5 ms")
    during, own = bars(), Figure()
    workshop_lib.plots.show(own, "A picture.")  # of one's own, drawn by matplotlib
    noted("one")
    for picture in (during, during, before):
        workshop_lib.plots.show(picture, "A picture.")
    note = "A picture. Emulated latency: cache 5 ms."
    assert [repr(picture) for picture in shown] == [note, note, note, "A picture."]
    assert notes(during) == notes(own) == ["emulated latency: cache 5 ms"]
    assert notes(before) == []
    assert notes(bars()) == []


def test_notes_of_several_owners_stand_below_each_other_and_the_same_one_once(noted):
    noted("one", "a note")
    noted("two", "another")
    noted("three", "a note")
    assert notes(bars()) == ["a note", "another"]
    noted("two", "changed")
    assert notes(bars()) == ["a note", "changed"]
