"""How entries lie in Valkey: read, locked, written and deleted in single steps.

An entry may be filed under tags. A tag is a key with a random version, and an entry carries the
versions that its tags had before it was loaded. It counts only while each of them is still the
current one; so deleting one small key invalidates everything filed under a tag, also loads that are
under way. A version that was evicted or has expired makes misses, never old answers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha1
from typing import Any, Protocol

import msgspec
from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from workshop_lib.cache import codec
from workshop_lib.cache.codec import MAX_BYTES, CorruptEntry, Entry
from workshop_lib.cache.keys import lock_key

BATCH = 1_000
"""Keys deleted per round trip."""
MIN_TAG_MS = 86_400_000
"""A tag's version is kept for at least a day after the last load under it."""
STAMPED = b"#"
"""Begins an entry that is filed under tags: their versions as JSON follow, and the end of a line.
No codec's output begins like this."""

# Each script touches one entry and its lock, which lie in the same slot of a cluster.
_ACQUIRE = """
local locked = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
return {locked and 1 or 0, redis.pcall('GETRANGE', KEYS[1], 0, ARGV[3])}
"""
_COMPLETE = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
redis.call('DEL', KEYS[2])
return 1
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
_RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""

Stamps = Mapping[str, str]
"""The versions of tags, by the tags' keys."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a key holds.

    Attributes:
        entry: None if the key holds nothing, nothing that can be read, or what was invalidated by
            one of its tags.
        size: bytes of the stored value.
        corrupt: the key holds something that is not an entry of ours.
        stamps: the versions of the tags under which the entry was filed.

    """

    entry: Entry | None
    size: int = 0
    corrupt: bool = False
    stamps: Stamps = field(default_factory=dict)

    @property
    def fresh(self) -> Entry | None:
        """The entry, unless it is kept only in case loading fails."""
        entry = self.entry
        return entry if entry is not None and time.time() < entry.fresh_until else None


NOTHING = Found(None)


class Codec(Protocol):
    """Turns entries into bytes and back; see the modules `codec` and `json_codec`."""

    def encode(self, entry: Entry) -> bytes:
        """The entry as bytes. Raises Uncacheable."""

    def decode(self, data: bytes, max_bytes: int = MAX_BYTES) -> Entry:
        """The entry in the bytes. Raises CorruptEntry, also for more than `max_bytes`."""


class Storage(Protocol):
    """Where the mechanism keeps entries. All methods but NullStorage's may raise RedisError."""

    def get(self, key: str, tags: Collection[str] = ()) -> Found:
        """What the key holds. With the tags that it is likely filed under, in one round trip."""

    def acquire(self, key: str, token: str, lock_ms: int) -> tuple[bool, Found]:
        """Take the entry's lock if it is free. Whether that worked, and what the key holds now."""

    def renew(self, key: str, token: str, lock_ms: int) -> bool:
        """Prolong the lock, if it is still this token's. Returns whether it was."""

    def stamp(self, tags: Collection[str], ttl_ms: int) -> Stamps:
        """The current versions of tags, made if need be, to be asked for before a load.

        Args:
            tags: keys of tags.
            ttl_ms: how long an entry may live that carries them.

        """

    def validated(self, found: Sequence[Found]) -> list[Found]:
        """The same, without the entries that were invalidated by a tag."""

    def pack(self, entry: Entry, stamps: Stamps) -> tuple[Any, int]:
        """The entry as it will be stored, and its size in bytes. Raises Uncacheable."""

    def unpack(self, packed: Any) -> Entry:
        """A copy of the entry that was packed, of which no part is shared."""

    def complete(self, key: str, token: str, packed: Any, ttl_ms: int) -> bool:
        """Store and release, if the lock is still this token's. Returns whether it was."""

    def put(self, key: str, packed: Any, ttl_ms: int, forget: Collection[str] = ()) -> None:
        """Store, and take the lock away from any loader: what it loads is older.

        Tags in `forget` are forgotten; on a cluster they have to lie in the key's slot.
        """

    def release(self, key: str, token: str) -> bool:
        """Give the lock back, if it is still this token's. Returns whether it was."""

    def delete(self, keys: Sequence[str], forget: Collection[str] = ()) -> int:
        """Remove entries and their locks, and forget tags. Returns how many entries there were."""

    def forget_tag(self, tag: str) -> None:
        """Invalidate all that is filed, or being loaded, under the tag."""


class Scripts:
    """Runs Lua scripts by their digest; the server is sent the text only when it has not got it."""

    def __init__(self, valkey: Redis) -> None:
        self.valkey: Any = valkey
        self._digests: dict[str, str] = {}

    def run(self, script: str, keys: Sequence[str], arguments: Iterable[Any]) -> Any:
        """What the script returns."""
        arguments = list(arguments)
        digest = self._digests.get(script)
        if digest is not None:
            try:
                return self.valkey.evalsha(digest, len(keys), *keys, *arguments)
            except NoScriptError:  # the server was restarted
                pass
        self._digests[script] = _sha1(script)
        return self.valkey.eval(script, len(keys), *keys, *arguments)


class StringStorage:
    """Each entry is one string value.

    Args:
        valkey: the client.
        entry_codec: how entries are written.
        max_bytes: no larger value is read: it is not an entry of ours.

    """

    def __init__(
        self, valkey: Redis, entry_codec: Codec = codec, max_bytes: int = MAX_BYTES
    ) -> None:
        self.valkey: Any = valkey
        self.codec = entry_codec
        self.max_bytes = max_bytes
        self.scripts = Scripts(valkey)

    def get(self, key: str, tags: Collection[str] = ()) -> Found:
        """Implement Storage."""
        if tags:
            pipeline = self.valkey.pipeline(transaction=False)
            self._read(pipeline, key)
            for tag in tags:
                pipeline.get(tag)
            answer, *versions = pipeline.execute(raise_on_error=False)
            return self.validated([self.parse(answer)], _texts(tags, versions))[0]
        try:
            found = self.parse(self._read(self.valkey, key))
        except ResponseError as error:
            found = self.parse(error)
        return self.validated([found])[0] if found.stamps else found

    def acquire(self, key: str, token: str, lock_ms: int) -> tuple[bool, Found]:
        """Implement Storage."""
        arguments = (token, lock_ms, self.max_bytes)
        locked, answer = self.scripts.run(_ACQUIRE, (key, lock_key(key)), arguments)
        return bool(locked), self.validated([self.parse(answer)])[0]

    def renew(self, key: str, token: str, lock_ms: int) -> bool:
        """Implement Storage."""
        return bool(self.scripts.run(_RENEW, (lock_key(key),), (token, lock_ms)))

    def stamp(self, tags: Collection[str], ttl_ms: int) -> Stamps:
        """Implement Storage."""
        if not tags:
            return {}
        kept = max(ttl_ms, MIN_TAG_MS)
        pipeline = self.valkey.pipeline(transaction=False)
        for tag in tags:
            pipeline.set(tag, secrets.token_hex(8), nx=True, px=kept).pexpire(tag, kept).get(tag)
        return _texts(tags, pipeline.execute()[2::3])

    def validated(self, found: Sequence[Found], current: Stamps | None = None) -> list[Found]:
        """The same, without the entries that were invalidated by a tag; one round trip at most.

        Args:
            found: what keys hold.
            current: versions of tags that are known already.

        """
        known = dict(current or {})
        unknown = {tag for one in found for tag in one.stamps} - known.keys()
        if unknown:
            pipeline = self.valkey.pipeline(transaction=False)
            for tag in unknown:
                pipeline.get(tag)
            known |= _texts(unknown, pipeline.execute(raise_on_error=False))
        return [
            one if all(version and known[tag] == version for tag, version in one.stamps.items())
            else replace(one, entry=None)
            for one in found
        ]  # fmt: skip

    def pack(self, entry: Entry, stamps: Stamps) -> tuple[Any, int]:
        """Implement Storage."""
        data = self.codec.encode(entry)
        if stamps:
            data = STAMPED + msgspec.json.encode(stamps) + b"\n" + data
        return data, len(data)

    def unpack(self, packed: Any) -> Entry:
        """Implement Storage."""
        return self.codec.decode(_split(packed)[1], len(packed))  # it may be too large to store

    def complete(self, key: str, token: str, packed: Any, ttl_ms: int) -> bool:
        """Implement Storage."""
        return bool(self.scripts.run(_COMPLETE, (key, lock_key(key)), (token, ttl_ms, packed)))

    def put(self, key: str, packed: Any, ttl_ms: int, forget: Collection[str] = ()) -> None:
        """Implement Storage."""
        # SET with its TTL is one command: there is no moment without a TTL.
        pipeline = self.valkey.pipeline(transaction=True)
        pipeline.set(key, packed, px=ttl_ms).delete(lock_key(key), *forget).execute()

    def release(self, key: str, token: str) -> bool:
        """Implement Storage."""
        return bool(self.scripts.run(_RELEASE, (lock_key(key),), (token,)))

    def delete(self, keys: Sequence[str], forget: Collection[str] = ()) -> int:
        """Implement Storage."""
        removed = 0
        for first in range(0, len(keys), BATCH):
            # No transaction: the keys lie in many slots. Each lock goes first, so that no loader
            # can store between the two commands what it read before.
            pipeline = self.valkey.pipeline(transaction=False)
            for key in keys[first : first + BATCH]:
                pipeline.delete(lock_key(key), *forget).unlink(key)
            removed += sum(pipeline.execute()[1::2])
        return removed

    def forget_tag(self, tag: str) -> None:
        """Implement Storage."""
        self.valkey.unlink(tag)

    def parse(self, answer: Any) -> Found:
        """What the server's answer to a read holds; its tags are not asked about.

        Raises:
            ResponseError: the answer is one, and does not say that the value is no string.

        """
        data = wrong_type_as_none(answer)
        if data is None:
            return Found(None, corrupt=True)
        if not data:
            return NOTHING
        if len(data) > self.max_bytes:
            return Found(None, len(data), corrupt=True)
        try:
            stamps, frame = _split(data)
            return Found(self.codec.decode(frame, self.max_bytes), len(data), stamps=stamps)
        except CorruptEntry:
            return Found(None, len(data), corrupt=True)

    def _read(self, client: Any, key: str) -> Any:
        """Ask for a value, and not for more of it than an entry can have."""
        return client.getrange(key, 0, self.max_bytes)


class NullStorage:
    """Keeps nothing: every read is a miss, and every miss may load."""

    def get(self, key: str, tags: Collection[str] = ()) -> Found:
        """Nothing."""
        del key, tags
        return NOTHING

    def acquire(self, key: str, token: str, lock_ms: int) -> tuple[bool, Found]:
        """Always."""
        del key, token, lock_ms
        return True, NOTHING

    def renew(self, key: str, token: str, lock_ms: int) -> bool:
        """Done."""
        del key, token, lock_ms
        return True

    def stamp(self, tags: Collection[str], ttl_ms: int) -> Stamps:
        """None."""
        del tags, ttl_ms
        return {}

    def validated(self, found: Sequence[Found]) -> list[Found]:
        """The same."""
        return list(found)

    def pack(self, entry: Entry, stamps: Stamps) -> tuple[Any, int]:
        """The entry itself, of no size."""
        del stamps
        return entry, 0

    def unpack(self, packed: Any) -> Entry:
        """The entry itself; the caller shares it with no other, as every miss loads."""
        entry: Entry = packed
        return entry

    def complete(self, key: str, token: str, packed: Any, ttl_ms: int) -> bool:
        """Done."""
        del key, token, packed, ttl_ms
        return True

    def put(self, key: str, packed: Any, ttl_ms: int, forget: Collection[str] = ()) -> None:
        """Done."""

    def release(self, key: str, token: str) -> bool:
        """Done."""
        del key, token
        return True

    def delete(self, keys: Sequence[str], forget: Collection[str] = ()) -> int:
        """There were none."""
        del keys, forget
        return 0

    def forget_tag(self, tag: str) -> None:
        """Done."""


def read_stamps(data: bytes | None) -> Stamps:
    """The versions of its tags that an entry carries, from JSON. Raises CorruptEntry."""
    try:
        return _STAMPS.decode(data) if data else {}
    except (ValueError, RecursionError) as error:
        raise CorruptEntry(f"The tags of the entry cannot be read: {error}.") from None


_STAMPS = msgspec.json.Decoder(dict[str, str])


def _split(data: bytes) -> tuple[Stamps, bytes]:
    """The versions of its tags that an entry carries, and the entry. Raises CorruptEntry."""
    if not data.startswith(STAMPED):
        return {}, data
    head, _, frame = data.partition(b"\n")
    return read_stamps(head[len(STAMPED) :]), frame


def wrong_type_as_none(answer: Any) -> Any:
    """A server's answer to a read; None for a value of another type than was asked for.

    Raises:
        ResponseError: the answer is another error.

    """
    if not isinstance(answer, Exception):
        return answer
    if "WRONGTYPE" in str(answer):  # another program's list, set, hash or string
        return None
    raise answer


def _texts(tags: Iterable[str], versions: Iterable[object]) -> dict[str, str]:
    """Versions by tag. A tag that has none, or is no tag of ours, has "": no entry counts then."""
    return {
        tag: version.decode("latin-1") if isinstance(version, bytes) else ""
        for tag, version in zip(tags, versions, strict=True)
    }


def _sha1(script: str) -> str:
    """The server's name for a script."""
    return sha1(script.encode(), usedforsecurity=False).hexdigest()
