"""The key of every entry, lock and tag.

A key reads from the general to the particular, with colons between: namespace, version of the key's
format, what is stored, which one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from uuid import UUID

from workshop_lib.cache.codec import Uncacheable, encode_value
from workshop_lib.rows import Params

_VERSION = "v3"  # raise it when a key is built differently: old entries are then never found
_KINDS = _QUERY, _TAG, _CALL, _OBJECT = "query", "tag", "call", "object"
_PLAIN_OBJECT = r"[A-Za-z0-9._/-]{1,200}"
_PLAIN_NAME = r"(?!-?\d+$)[A-Za-z0-9_-]{1,40}"


def query_key(namespace: str, sql: str, params: Params = None, *, scope: str = "") -> str:
    """Return the key of a query's answer: the same for the same text, parameters and scope.

    `scope` tells apart what the text does not: the database, the schema, or the role that asks.

    >>> query_key("workshop", "SELECT * FROM users WHERE user_id = %s", (7,))
    'workshop:v3:query:select-from-users-where-user-id:8c780556454c99bbd699aae816b5960e'

    Raises ValueError for a bad namespace, TypeError for a statement that is no text, or a parameter
    that cannot be told apart from others by its type and value.
    """
    if not isinstance(sql, str):
        raise TypeError(
            f"A query must be a str, and this is of type {type(sql).__name__}. Pass its text; of "
            "psycopg2.sql's objects, as_string(connection)."
        )
    # Only the ends are stripped: white space within may belong to a literal, as in 'New  York'.
    text = sql.strip()
    identity = _canonical((scope, text, _plain(params)))
    return f"{_prefix(namespace)}:{_QUERY}:{_slug(text[:1_000])}:{_digest(identity)}"


def call_key(namespace: str, function: str, arguments: object, *, scope: object = "") -> str:
    """Return the key of what a function returned for these arguments.

    `scope` tells apart what the name does not: the database, and what the function does.

    >>> call_key("workshop", "prices.of", ((7,), {}))
    'workshop:v3:call:prices-of:f4b0675043cc892ac810c6a64cf60a87'

    Raises ValueError for a bad namespace, TypeError as `query_key` does.
    """
    identity = _canonical((scope, function, arguments))
    return f"{_prefix(namespace)}:{_CALL}:{_slug(function)}:{_digest(identity)}"


def record_key(namespace: str, table: str, primary_key: object, *, scope: str = "") -> str:
    """Return the key of one record of a table.

    Whole numbers, short plain names and UUIDs are written as they are; anything else as its type
    and a digest, so that no two records share a key. `scope` says which database the table is in.

    >>> record_key("workshop", "planet", 3)
    'workshop:v3:planet:3'
    >>> record_key("workshop", "planet", 3, scope="db.example.com:5432/postgres")
    'workshop:v3:db~d83ff62d579c:planet:3'

    Raises ValueError for a bad namespace, TypeError as `query_key` does.
    """
    return f"{_table_prefix(namespace, table, scope)}:{_part(primary_key)}"


def object_key(namespace: str, bucket: str, name: str) -> str:
    """Return the key of an object of a bucket.

    >>> object_key("workshop", "local/photos", "cats/1.jpg")
    'workshop:v3:object:local/photos:cats/1.jpg'

    Raises ValueError for a bad namespace.
    """
    parts = [_part(part, _PLAIN_OBJECT) for part in (bucket, name)]
    return ":".join((_prefix(namespace), _OBJECT, *parts))


def lock_key(key: str) -> str:
    """Return the key of the lock that the loader of an entry holds.

    The braces make a cluster hash it by the entry's own key, so that both are in the same slot and
    one script may touch them together. It begins with the namespace, as all keys of ours do.

    >>> lock_key("workshop:v3:planet:3")
    'workshop:lock:{workshop:v3:planet:3}'
    """
    return f"{key.partition(':')[0]}:lock:{{{key}}}"


def tag_keys(namespace: str, tags: Iterable[str]) -> list[str]:
    """Return the keys of tags, which hold their versions.

    >>> tag_keys("workshop", ["orders", "users"])
    ['workshop:v3:tag:orders', 'workshop:v3:tag:users']

    Raises ValueError for a bad namespace, TypeError for what is no list of texts.
    """
    names = texts(tags, "Tags", "orders")
    return [f"{_prefix(namespace)}:{_TAG}:{_part(name)}" for name in names]


def texts(given: Iterable[str], what: str, example: str) -> list[str]:
    """Return a list of texts. Raises TypeError for what is none, such as one text alone."""
    is_list = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    names = list(given) if is_list else []
    if not is_list or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{what} are a list of texts, as in [{example!r}], and {given!r} is not.")
    return names


def match_all(namespace: str) -> str:
    """Return the pattern by which SCAN finds the namespace's keys, and no others.

    >>> match_all("workshop")
    'workshop:*'

    Raises ValueError for a bad namespace.
    """
    return f"{_checked(namespace)}:*"  # nothing to escape: a namespace holds no glob character


@lru_cache(maxsize=1024)
def _table_prefix(namespace: str, table: str, scope: str) -> str:
    # No other part begins like this: what precedes a ~ is the name of a type.
    place = f"db~{_digest(scope.encode())[:12]}:" if scope else ""
    return f"{_prefix(namespace)}:{place}{_part(table)}"


@lru_cache(maxsize=1024)
def _prefix(namespace: str) -> str:
    return f"{_checked(namespace)}:{_VERSION}"


def _checked(namespace: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", namespace):
        raise ValueError(
            f"{namespace!r} cannot be a namespace: it would make keys ambiguous or hard to type. "
            "Use 1 to 40 of the letters A-Z and a-z, digits, _ and -."
        )
    return namespace


def _plain(params: Params) -> object:
    """Return the parameters as a dict, a tuple or None, as the driver treats them."""
    if params is None or type(params) is tuple:
        return params
    if isinstance(params, Mapping):
        if hasattr(params, "__missing__"):
            raise Uncacheable(
                "A defaultdict cannot be part of a key: it does not hold every value."
            )
        return {name: params[name] for name in sorted(params, key=repr)}  # found by name alone
    if isinstance(params, Sequence) and not isinstance(params, str | bytes | bytearray):
        return tuple(params)
    raise TypeError(
        f"A query's parameters cannot be of type {type(params).__name__}. Pass a tuple, a list or "
        "a dict; one value alone is a tuple too, as in (7,)."
    )


@lru_cache(maxsize=1024)  # a workshop has few texts and asks for their keys at every read
def _slug(sql: str) -> str:
    """Return what a person can read of the SQL: lower case and hyphens, at most 40 characters."""
    without_placeholders = re.sub(r"%(\(\w+\))?s", " ", sql)
    words = re.findall(r"[a-z0-9]+", without_placeholders.lower())
    return "-".join(words)[:40].rstrip("-") or "sql"


def _part(value: object, plain: str = _PLAIN_NAME) -> str:
    """Return the value's part of a key: never the same for another value."""
    if type(value) is int and -(2**63) <= value < 2**63:
        return str(value)
    # Digits alone would read as the number, and a table `query` as another kind of key.
    if type(value) is str and value not in _KINDS and re.fullmatch(plain, value):
        return value
    if type(value) is UUID:
        return f"UUID~{value}"
    return f"{type(value).__name__}~{_digest(_canonical(value))}"


def _canonical(value: object) -> bytes:
    return encode_value(value, "A parameter or argument")


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
