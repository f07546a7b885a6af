"""A progress bar hands on what it is given."""

import sys

from workshop_lib.progress import progress_bar, with_progress


def test_every_item_comes_through_in_order():
    assert list(with_progress([3, 1, 2], "counting")) == [3, 1, 2]
    assert list(with_progress([], "nothing")) == []


def test_there_is_a_bar_on_a_terminal_and_none_in_a_pipe(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with progress_bar(3, "counting") as bar:
            assert bar.disable is not terminal
