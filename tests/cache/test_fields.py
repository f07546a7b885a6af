"""A hash field reads as what it is, and comes back as what it was."""

import struct
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings, strategies as st

from workshop_lib.cache.codec import CorruptEntry
from workshop_lib.cache.fields import decode_field, encode_field

quick = settings(max_examples=80, deadline=None)

zones = st.sampled_from(
    [None, UTC, timezone(timedelta(hours=2)), timezone(timedelta(0), "Zulu"),
     ZoneInfo("Europe/Berlin")]
)  # fmt: skip
moments = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold),
    st.datetimes() | st.times(),
    zones,
    st.integers(0, 1),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.decimals(),
    st.text(),
    st.binary(),
    st.dates(),
    moments,
    st.timedeltas(),
    st.uuids(),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)


def exactly(value: object) -> object:
    """Return what is equal only for values of the same type that nothing could tell apart."""
    if type(value) in (list, tuple):
        return type(value), [exactly(part) for part in value]
    if type(value) is dict:
        return dict, [(exactly(key), exactly(item)) for key, item in value.items()]
    if type(value) is float:
        return float, struct.pack(">d", value)
    return type(value), repr(value)


@quick
@given(values)
@example(float("inf"))
@example(-0.0)
@example(5e-324)
@example(float("nan"))
@example(struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0])
@example(Decimal("sNaN"))
@example(Decimal("-0E-10"))
@example(Decimal("1E+500000"))
@example(datetime(2026, 10, 25, 2, 30, fold=1))  # noqa: DTZ001 - a naive one is a value, too
@example(datetime(1, 1, 1, tzinfo=UTC))
@example("n:")
@example("\x00\n")
def test_any_value_comes_back(value: object) -> None:
    assert exactly(decode_field(encode_field(value))) == exactly(value)


@quick
@given(st.binary() | st.builds(lambda letter, rest: letter + b":" + rest,
                               st.sampled_from([bytes([n]) for n in b"nbifsdDtxuv"]),
                               st.binary() | st.text().map(str.encode)))  # fmt: skip
def test_garbage_raises_corrupt_entry_and_nothing_else(data: bytes) -> None:
    try:
        decode_field(data)
    except CorruptEntry:
        return


@pytest.mark.parametrize(
    "data",
    [b"", b":", b"i", b"i:", b"i:x", b"z:1", b"3", b"b:True", b"n:x", b"f:", b"f:0x", b"d:", b"d:x",
     b"D:2026-02-30", b"t:noon", b"x:0", b"u:1", b"v:", b"v:!", b"v:AAAA", b"s:\xff", b"\xff:",
     b"i:" + b"9" * 5000, b"d:1E+9999999999999999999"],
)  # fmt: skip
def test_what_no_value_is_written_as_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptEntry):
        decode_field(data)
