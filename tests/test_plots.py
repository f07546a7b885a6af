"""Pictures that can be read: units on the axes, and a text for those who cannot see them."""

import struct
from base64 import b64decode
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
    assert f'<img alt="{alt}" src="{source}"' in data["text/html"]


def contrast(colour):
    """With white, by the formula of the Web Content Accessibility Guidelines 2.2."""
    from matplotlib.colors import to_rgb

    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
    )
    return 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)


def test_words_can_be_read_and_marks_be_seen_on_the_white_of_a_picture():
    from matplotlib.text import Text

    from workshop_lib.dsql.interleaving import Step

    plots = workshop_lib.plots
    steps = [Step("Ann", "COMMIT", "a conflict", code="40001"), Step("Bob", "BEGIN", "ok")]
    words = plots.transactions(steps, "A title").findobj(Text)
    assert min(contrast(word.get_color()) for word in words) >= 4.5
    marks = [*plots.COLOURS, plots.WARNING, *(colour for colour, _ in plots.LOOKS.values())]
    # Okabe and Ito's orange and sky blue are lighter; a marker and a name go with each.
    assert {mark for mark in marks if contrast(mark) < 3} == {"#E69F00", "#56B4E9"}
