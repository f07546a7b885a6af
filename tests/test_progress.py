"""A progress bar hands on what it is given."""

from workshop_lib.progress import with_progress


def test_every_item_comes_through_in_order():
    assert list(with_progress([3, 1, 2], "counting")) == [3, 1, 2]
    assert list(with_progress([], "nothing")) == []


def test_it_is_silent_where_nobody_looks(monkeypatch, capfd):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(with_progress(range(3), "counting")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")
