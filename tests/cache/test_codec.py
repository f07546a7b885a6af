"""What goes into the cache comes out again, type and value; anything else is noticed."""

from collections import namedtuple
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings, strategies as st
from msgspec.structs import replace

from workshop_lib.cache.codec import (
    MAX_DEPTH,
    CorruptEntry,
    Entry,
    Uncacheable,
    decode,
    decode_values,
    encode,
    encode_value,
    seal,
)

quick = settings(max_examples=40, deadline=None)

# --- every supported type ---

zones = st.none() | st.just(UTC) | st.builds(
    timezone, st.integers(-1439, 1439).map(lambda minutes: timedelta(minutes=minutes))
)  # fmt: skip
digits = st.lists(st.integers(0, 9), max_size=30).map(tuple)
exponents = st.integers(-40, 40) | st.sampled_from(["n", "N"])


def in_a_zone(moment: Any, zone: tzinfo | None) -> Any:
    return moment.replace(tzinfo=zone, fold=0)


by_type: list[st.SearchStrategy[object]] = [
    st.none(), st.booleans(), st.floats(), st.text(), st.binary(), st.dates(), st.timedeltas(),
    st.uuids(), st.decimals() | st.builds(Decimal, st.tuples(st.integers(0, 1), digits, exponents)),
    st.integers() | st.integers(-(2**65), 2**65) | st.sampled_from([-(2**63), 2**64 - 1]),
    st.builds(in_a_zone, st.times(), zones), st.builds(in_a_zone, st.datetimes(), zones),
]  # fmt: skip
scalars = st.one_of(*by_type)
hashable = scalars.filter(lambda value: not (type(value) is Decimal and value.is_snan()))
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Draw an answer whose columns are each of one type and None, or of any types."""
    kinds = draw(st.lists(st.sampled_from([*by_type, values]), max_size=5))
    most = 6 if kinds else 0
    rows = draw(st.lists(st.tuples(*(st.none() | kind for kind in kinds)), max_size=most))
    names = draw(st.tuples(*(st.text(max_size=8) for _ in kinds)))
    seconds, tags = st.floats(0, 1e10), st.dictionaries(st.text(), st.text(), max_size=2)
    until = draw(seconds | st.none())
    return Entry(names, rows, draw(seconds), draw(seconds), until, draw(tags))


def exactly(value: object) -> object:
    """Return what is equal only for values of the same type that nothing could tell apart."""
    if type(value) in (list, tuple):
        return type(value), [exactly(part) for part in value]  # type: ignore[attr-defined]
    if type(value) is dict:
        return dict, [(exactly(key), exactly(item)) for key, item in value.items()]
    return type(value), repr(value)  # a datetime's repr shows fold, zone and the zone's name


def entry_of(*column: object) -> Entry:
    return Entry(("it",), [(value,) for value in column], 0.25, 1_700_000_000.5)


EXAMPLES = [
    None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 2**64, -(2**63) - 1, 10**1000, 1.0,
    -0.0, float("inf"), float("-inf"), float("nan"), 5e-324, Decimal("12.50"), Decimal("-0"),
    Decimal("0E-10"), Decimal("1E+500000"), Decimal("NaN"), Decimal("sNaN"), Decimal("-NaN123"),
    Decimal("-Infinity"), "", "Zürich Ω 日本語 🪐 مرحبا", "\x00\n", "2024-01-01", "12.50", b"",
    b"\x00\xff", date(1, 1, 1), date(9999, 12, 31), time(23, 59, 59, 999999),
    time(1, 2, tzinfo=UTC), datetime(1, 1, 1), datetime(2024, 2, 29, 12, 0, 0, 1),  # noqa: DTZ001
    datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=45))),
    timedelta.min, timedelta.max,
    timedelta(microseconds=-1), UUID(int=0), UUID(int=2**128 - 1), [], (), {},
    [1, [2.5, (None, {"a": [Decimal("1.0")]})]], (date(2024, 1, 1), b"x"),
    {"b": 1, "a": 2, 3: "three", None: (), Decimal("1.5"): [], date(2024, 1, 1): True},
    ["list", [1]],
]  # fmt: skip


def test_a_column_of_every_type_mixed_comes_back() -> None:
    entry = entry_of(*EXAMPLES)
    assert exactly(decode(encode(entry)).rows) == exactly(entry.rows)


@quick
@given(entry=entries())
def test_any_answer_comes_back(entry: Entry) -> None:
    data = encode(entry)
    back = decode(data)
    assert exactly(back.rows) == exactly(entry.rows)
    assert replace(back, rows=[]) == replace(entry, rows=[], size=len(data))


@quick
@given(values)
def test_any_single_value_comes_back(value: object) -> None:
    assert exactly(decode_values([encode_value(value)])) == exactly([value])


def test_it_is_written_to_be_read() -> None:
    rows: list[tuple[object, ...]] = [(1, "Café", Decimal("12.50")), (2, None, 3)]
    assert encode(Entry(("id", "name", "price"), rows, 0.004, 2.0)).decode()[:-9] == (
        '{"created_at":2.0,"cost_seconds":0.004,'
        '"columns":["id","name","price"],"types":["int","str","mixed"]}\n'
        '[[1,2],["Café",null],[["Decimal","12.50"],3]]'
    )


# --- what would not come back ---


def subclass(kind: type) -> Any:
    """A class that passes for its parent."""
    return type("Mine", (kind,), {})


STRANGERS = [
    IntEnum("Planet", "EARTH")(1), StrEnum("Colour", {"RED": "red"})("red"), subclass(str)("Al"),
    subclass(dict)(a=1), namedtuple("Point", "x y")(1, 2), np.int64(1), np.float64(1.0),
    pd.Timestamp("2024-01-01"), pd.NaT, bytearray(b"x"), memoryview(b"x"), {1}, frozenset({1}), 1j,
    range(3), object(), int, datetime(2024, 1, 1, tzinfo=subclass(tzinfo)()),
    "half a pair: \ud83e", datetime(2024, 10, 27, 2, 30, fold=1),  # noqa: DTZ001
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "Zulu")), time(1, 2, tzinfo=ZoneInfo("UTC")),
    datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
]  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda value: type(value).__name__)
def test_a_value_that_would_come_back_as_something_else_is_refused(stranger: object) -> None:
    for value in (stranger, [stranger], {"k": (stranger,)}):
        with pytest.raises(Uncacheable):
            encode_value(value)
    for neighbour in (None, 1, "a"):
        with pytest.raises(Uncacheable):
            encode(entry_of(neighbour, stranger, neighbour))


def test_the_refusal_names_the_column_and_the_type() -> None:
    entry = Entry(("id", "price"), [(1, np.float64(2.5))], 0.1, 2.0)
    with pytest.raises(
        Uncacheable, match=r"Column 'price' holds a value of type numpy\.float64.*Turn it into"
    ):
        encode(entry)


@pytest.mark.parametrize(
    ("columns", "rows"),
    [("ab", [(1,)]), ("ab", [(1, 2), (1, 2, 3)]), ("ab", [(1, 2), ()]), ("", [(), ()])],
)
def test_rows_of_another_width_than_the_columns_are_refused(columns: str, rows: list[Any]) -> None:
    with pytest.raises(Uncacheable, match=f"where there are {len(columns)} columns"):
        encode(Entry(tuple(columns), rows, 0.1, 2.0))


def nested(levels: int, wrap: Callable[[object], object]) -> object:
    value: object = 1
    for _ in range(levels):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: (v,), lambda v: {"k": v}])
def test_nesting_comes_back_within_the_limit_and_is_refused_beyond(
    wrap: Callable[[object], object],
) -> None:
    value = nested(MAX_DEPTH, wrap)
    assert decode_values([encode_value(value)]) == [value]
    with pytest.raises(Uncacheable, match="nested more than"):
        encode(entry_of(nested(100_000, wrap)))


# --- what was not encoded here ---


@given(st.binary())
def test_foreign_bytes_are_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptEntry):
        decode(data)


@quick
@given(entries(), st.data())
def test_a_truncated_entry_and_a_flipped_bit_are_noticed(entry: Entry, data: st.DataObject) -> None:
    whole = encode(entry)
    damaged = bytearray(whole)
    bit = data.draw(st.integers(0, len(damaged) * 8 - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    for spoilt in (bytes(damaged), whole[: bit // 8]):
        with pytest.raises(CorruptEntry):
            decode(spoilt)


# --- forged entries: the checksum fits ---

GOOD = encode(Entry(("a", "b"), [(1, "x")], 0.1, 2.0, 3.0, {"t": "v"}))[:-9]
MIXED = GOOD.replace(b'"str"', b'"mixed"').replace(b'"x"', b"%b")

FORGERIES = [
    (b"[1]", b"[1,2]"), (b"[1]", b'["1"]'), (b"[1]", b"[[1]]"), (b"[1]", b"1"), (b"[1],", b""),
    (b'"int"', b'"complex"'), (b'"int",', b""), (b'"int"', b'"int","int"'),
    (b'"str"', b'"mixed","mixed"'), (b'["x"]', b'["x"],[1]'),
    (GOOD, MIXED % b'["date","yesterday"]'), (GOOD, MIXED % b"{}"),
    (GOOD, MIXED % (b"[" * 9_999 + b"]" * 9_999)),
    (b"\n", b""), (b'"a"', b"1"), (b"0.1", b'"0.1"'), (b'{"t":"v"}', b"[]"), (b'"v"', b"1"),
    (b'"v"}', b'"v"},"more":1'), (b"3.0", b"1e18"), (b"0.1", b"-1"), (b"2.0", b"1e400"),
    (b"2.0", b"NaN"), (GOOD, b""),
    (GOOD, b"[]"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "forgery"), FORGERIES, ids=lambda part: part.decode()[:30])
def test_an_answer_that_does_not_add_up_is_corrupt(part: bytes, forgery: bytes) -> None:
    assert decode(seal(GOOD)).rows == [(1, "x")]
    with pytest.raises(CorruptEntry):
        decode(seal(GOOD.replace(part, forgery, 1)))


@quick
@given(entries(), st.data())
def test_any_damage_under_a_fitting_checksum_raises_corrupt_or_nothing(
    entry: Entry, data: st.DataObject
) -> None:
    text = bytearray(encode(entry)[:-9])
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode(seal(bytes(text)))
    except CorruptEntry:
        return


@pytest.mark.parametrize(
    "packed",
    [["no such type", 1], ["date", "2024-02-30"], ["Decimal", "twelve"], ["UUID", "short"],
     ["bytes", "A"], ["timedelta", [10**12, 0, 0]], ["dict", [[["list", []], 1]]],
     ["dict", [[1]]], ["list", 1], [1, 2, 3], [[], 1], {}, {"a": 1}],
    ids=repr,
)  # fmt: skip
def test_a_value_that_none_of_the_types_has_is_corrupt(packed: object) -> None:
    with pytest.raises(CorruptEntry):
        decode_values([msgspec.json.encode(packed)])


FOREIGN = [b"", b" ", b"1,2", b"]", b"[1", b"x", b"\xff", b'"\xff"', b"1 2", b"9" * 5_000,
           b'["list",[' * 100_000]  # fmt: skip


@pytest.mark.parametrize("data", FOREIGN, ids=lambda data: repr(data[:10]))
def test_what_is_no_json_of_ours_is_no_value(data: bytes) -> None:
    for parts in ([data], [b"1", data], [data, b"1"]):
        with pytest.raises(CorruptEntry):
            decode_values(parts)


# --- bytes for keys ---


LOOKALIKES = [
    1, True, 1.0, "1", b"1", Decimal(1), Decimal("1.0"), [1], (1,), {"1": 1}, {1: 1}, "None",
    None, "[1]", date(1, 1, 1), datetime(1, 1, 1), datetime(1, 1, 1, tzinfo=UTC),  # noqa: DTZ001
]  # fmt: skip


def test_values_that_look_alike_have_bytes_of_their_own() -> None:
    for kind in (LOOKALIKES, EXAMPLES):
        assert len({encode_value(value) for value in kind}) == len(kind)


@quick
@given(values, values)
def test_two_values_share_bytes_only_if_nothing_tells_them_apart(
    one: object, other: object
) -> None:
    assume(exactly(one) != exactly(other))
    assert encode_value([one]) != encode_value([other])
