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
    assert data["text/html"] == f'<img alt="{alt}" src="{source}">'
