"""Two questions never share a key, and a person can read every key."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from uuid import UUID

import pytest
from hypothesis import assume, given, settings, strategies as st

from workshop_lib.cache.keys import (
    call_key,
    lock_key,
    match_all,
    query_key,
    record_key,
    tag_keys,
)

quick = settings(max_examples=60, deadline=None)

SQL = "SELECT * FROM users WHERE user_id = %s"


# --- the answer of a query ---


PAIRS: dict[str, tuple[str, str, bool]] = {
    "by name and by position": (
        query_key("w", SQL, {"a": 1}), query_key("w", SQL, (("a", 1),)), False),
    "names in another order": (
        query_key("w", SQL, {"a": 1, "b": 2}), query_key("w", SQL, {"b": 2, "a": 1}), True),
    "any mapping": (
        query_key("w", SQL, MappingProxyType({"a": 1})), query_key("w", SQL, {"a": 1}), True),
    "a list": (query_key("w", SQL, [1, "x"]), query_key("w", SQL, (1, "x")), True),
    "positions in another order": (query_key("w", SQL, (1, 2)), query_key("w", SQL, (2, 1)), False),
    "space around": (query_key("w", f"\n  {SQL}\t ", (7,)), query_key("w", SQL, (7,)), True),
    "space within": (query_key("w", "SELECT 'a b'"), query_key("w", "SELECT 'a  b'"), False),
    "letter case": (query_key("w", "SELECT 'a'"), query_key("w", "SELECT 'A'"), False),
    "scopes": (query_key("w", SQL, scope="a"), query_key("w", SQL, scope="b"), False),
    "scope and SQL": (query_key("w", "bc", scope="a"), query_key("w", "c", scope="ab"), False),
    "namespaces": (query_key("one", SQL), query_key("two", SQL), False),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other", "same"), PAIRS.values(), ids=PAIRS)
def test_what_belongs_to_the_question_and_what_does_not(one: str, other: str, same: bool) -> None:
    assert (one == other) is same


@pytest.mark.parametrize("lonely", ["7", b"7", 7, {7}])
def test_a_value_in_place_of_parameters_is_refused_with_advice(lonely: object) -> None:
    with pytest.raises(TypeError, match=r"one value alone is a tuple too, as in \(7,\)"):
        query_key("w", SQL, lonely)  # type: ignore[arg-type]


params = (
    st.none()
    | st.lists(st.text() | st.integers() | st.none())
    | st.dictionaries(st.text(), st.floats() | st.binary())
)


def shown(params: object) -> str:
    """Return what tells parameters apart: every type and value, but not a dict's order."""
    return repr(dict(sorted(params.items())) if isinstance(params, dict) else params)


@quick
@given(st.text(), st.text(), params, params)
def test_two_questions_share_a_key_only_if_they_are_one(
    sql: str, other_sql: str, params: Sequence[object] | None, other: Sequence[object] | None
) -> None:
    assume((sql.strip(), shown(params)) != (other_sql.strip(), shown(other)))
    assert query_key("w", sql, params) != query_key("w", other_sql, other)


# --- one record of a table ---


awkward = st.text("a1:-~* é", max_size=4)
part = st.one_of(
    awkward, st.integers(-20, 20), st.integers(), st.booleans(), st.none(),
    st.floats(allow_nan=False), st.decimals(allow_nan=False), st.integers(-20, 20).map(str),
    st.uuids(), st.uuids().map(str),
)  # fmt: skip
records = st.tuples(awkward | st.just("query"), part, st.sampled_from(["", "here", "there"]))


@quick
@given(records, records)
def test_two_records_share_a_key_only_if_they_are_one(
    one: tuple[str, object, str], other: tuple[str, object, str]
) -> None:
    assume(repr(one) != repr(other))
    keys = {record_key("w", table, key, scope=scope) for table, key, scope in (one, other)}
    assert len(keys) == 2


def test_a_uuid_can_be_read() -> None:
    key = record_key("w", "users", UUID(int=7))
    assert key == "w:v3:users:UUID~00000000-0000-0000-0000-000000000007"


@pytest.mark.parametrize("kind", ["query", "call", "tag", "object"])
def test_a_table_called_like_another_kind_of_key_does_not_meet_it(kind: str) -> None:
    assert not record_key("w", kind, "select-1").startswith(f"w:v3:{kind}:")


# --- calls, tags, locks, and all keys of a namespace ---


def test_a_tag_can_have_any_name() -> None:
    names = ["orders", "orders:eu", "Größe", "query", "3", "", "*"]
    assert len(set(tag_keys("w", names))) == len(names)
    assert tag_keys("w", ["orders"]) == ["w:v3:tag:orders"]


def test_the_pattern_matches_every_key_of_its_namespace_and_no_other() -> None:
    keys = [query_key("w", SQL), record_key("w", "planet", 3), record_key("w", "a b", "c d"),
            call_key("w", "m.f", (1,)), *tag_keys("w", ["*", "ü"])]  # fmt: skip
    keys += [lock_key(key) for key in keys]
    assert all(fnmatchcase(key, match_all("w")) for key in keys)
    for other in ("w2", "aw", "W", "w-", "_w"):
        assert not fnmatchcase(record_key(other, "planet", 3), match_all("w"))


@pytest.mark.parametrize("namespace", ["", "a:b", "a b", "a*", "a?", "[a]", "a\n", "é", "a" * 41])
@pytest.mark.parametrize(
    "make", [lambda n: query_key(n, SQL), lambda n: record_key(n, "planet", 3), match_all]
)
def test_a_bad_namespace_is_refused(make: Callable[[str], str], namespace: str) -> None:
    with pytest.raises(ValueError, match="Use 1 to 40 of the letters"):
        make(namespace)
