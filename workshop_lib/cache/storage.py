"""How entries lie in Valkey: read, locked, written and deleted in single steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Protocol

from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from workshop_lib.cache import codec
from workshop_lib.cache.codec import CorruptEntry, Entry
from workshop_lib.cache.keys import lock_key

# Each script touches one entry and its lock, which lie in the same slot of a cluster.
_ACQUIRE = """
local locked = redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2])
return {locked and 1 or 0, redis.pcall('GET', KEYS[1])}
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
# A set may live longer than asked by an earlier writer, never shorter, and never without an end.
_TAG = """
redis.call('SADD', KEYS[1], ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 1
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What lies under a key.

    Attributes:
        entry: None if nothing does, or nothing that can be read.
        size: bytes of the stored value.
        corrupt: something does that is not an entry of ours.

    """

    entry: Entry | None
    size: int = 0
    corrupt: bool = False

    @property
    def fresh(self) -> Entry | None:
        """The entry, unless it is kept only in case loading fails."""
        entry = self.entry
        return entry if entry is not None and time.time() < entry.fresh_until else None


NOTHING = Found(None)


class Codec(Protocol):
    """Turns entries into bytes and back; see the rooms `codec` and `json_codec`."""

    def encode(self, entry: Entry) -> bytes:
        """The entry as bytes. Raises Uncacheable."""

    def decode(self, data: bytes, max_bytes: int = ...) -> Entry:
        """The entry in the bytes. Raises CorruptEntry, also for more than `max_bytes`."""


class Storage(Protocol):
    """Where the mechanism keeps entries. All methods but NullStorage's may raise RedisError."""

    def get(self, key: str) -> Found:
        """What lies under the key."""

    def acquire(self, key: str, token: str, lock_ms: int) -> tuple[bool, Found]:
        """Take the entry's lock if it is free. Whether that worked, and what lies there now."""

    def pack(self, entry: Entry) -> tuple[Any, int]:
        """The entry as it will be stored, and its size in bytes. Raises Uncacheable."""

    def unpack(self, packed: Any) -> Entry:
        """An entry equal to the one that was packed, of which nobody else holds any part."""

    def complete(self, key: str, token: str, packed: Any, ttl_ms: int) -> bool:
        """Store and release, if the lock is still this token's. Returns whether it was."""

    def put(self, key: str, packed: Any, ttl_ms: int) -> None:
        """Store, whoever holds the lock, and take the lock away: their value is older."""

    def release(self, key: str, token: str) -> bool:
        """Give the lock back, if it is still this token's. Returns whether it was."""

    def delete(self, keys: Sequence[str]) -> int:
        """Remove entries and their locks. Returns how many entries there were."""

    def tag(self, tag: str, key: str, ttl_ms: int) -> None:
        """List the key under the tag, for at least this long."""

    def tagged(self, tag: str) -> list[str]:
        """The keys listed under the tag."""

    def untag(self, tag: str, keys: Sequence[str]) -> None:
        """List these keys under the tag no longer."""


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
    """Each entry is one string value."""

    def __init__(self, valkey: Redis, entry_codec: Codec = codec) -> None:
        self.valkey: Any = valkey
        self.codec = entry_codec
        self.scripts = Scripts(valkey)

    def get(self, key: str) -> Found:
        """See Storage."""
        try:
            return self.parse(self.valkey.get(key))
        except ResponseError as error:
            if "WRONGTYPE" in str(error):  # somebody else's list or hash
                return Found(None, corrupt=True)
            raise

    def acquire(self, key: str, token: str, lock_ms: int) -> tuple[bool, Found]:
        """See Storage."""
        locked, data = self.scripts.run(_ACQUIRE, (key, lock_key(key)), (token, lock_ms))
        return bool(locked), self.parse(data)

    def pack(self, entry: Entry) -> tuple[Any, int]:
        """See Storage."""
        data = self.codec.encode(entry)
        return data, len(data)

    def unpack(self, packed: Any) -> Entry:
        """See Storage."""
        return self.codec.decode(packed)

    def complete(self, key: str, token: str, packed: Any, ttl_ms: int) -> bool:
        """See Storage."""
        return bool(self.scripts.run(_COMPLETE, (key, lock_key(key)), (token, ttl_ms, packed)))

    def put(self, key: str, packed: Any, ttl_ms: int) -> None:
        """See Storage."""
        # SET with its TTL is one command: there is no moment without a TTL.
        pipeline = self.valkey.pipeline(transaction=True)
        pipeline.set(key, packed, px=ttl_ms).delete(lock_key(key)).execute()

    def release(self, key: str, token: str) -> bool:
        """See Storage."""
        return bool(self.scripts.run(_RELEASE, (lock_key(key),), (token,)))

    def delete(self, keys: Sequence[str]) -> int:
        """See Storage."""
        # No transaction: the keys lie in many slots. Each lock goes first, so that nobody can store
        # between the two commands what was loaded before.
        pipeline = self.valkey.pipeline(transaction=False)
        for key in keys:
            pipeline.delete(lock_key(key)).unlink(key)
        return sum(pipeline.execute()[1::2])

    def tag(self, tag: str, key: str, ttl_ms: int) -> None:
        """See Storage."""
        self.scripts.run(_TAG, (tag,), (key, ttl_ms))

    def tagged(self, tag: str) -> list[str]:
        """See Storage."""
        # SSCAN may answer twice with the same one.
        return sorted({key.decode() for key in self.valkey.sscan_iter(tag, count=1000)})

    def untag(self, tag: str, keys: Sequence[str]) -> None:
        """See Storage."""
        if keys:
            self.valkey.srem(tag, *keys)

    def parse(self, data: Any) -> Found:
        """What a string value, or None for no value, holds."""
        if data is None:
            return NOTHING
        if not isinstance(data, bytes):  # an error inside the script: not a string
            return Found(None, corrupt=True)
        try:
            return Found(self.codec.decode(data), len(data))
        except CorruptEntry:
            return Found(None, len(data), corrupt=True)


class NullStorage:
    """Keeps nothing: every read is a miss, and every miss may load."""

    def get(self, key: str) -> Found:
        """Nothing."""
        del key
        return NOTHING

    def acquire(self, key: str, token: str, lock_ms: int) -> tuple[bool, Found]:
        """Always."""
        del key, token, lock_ms
        return True, NOTHING

    def pack(self, entry: Entry) -> tuple[Any, int]:
        """The entry itself, of no size."""
        return entry, 0

    def unpack(self, packed: Any) -> Entry:
        """The entry itself; the caller shares it with nobody, as every miss loads."""
        entry: Entry = packed
        return entry

    def complete(self, key: str, token: str, packed: Any, ttl_ms: int) -> bool:
        """Done."""
        del key, token, packed, ttl_ms
        return True

    def put(self, key: str, packed: Any, ttl_ms: int) -> None:
        """Done."""

    def release(self, key: str, token: str) -> bool:
        """Done."""
        del key, token
        return True

    def delete(self, keys: Sequence[str]) -> int:
        """There were none."""
        del keys
        return 0

    def tag(self, tag: str, key: str, ttl_ms: int) -> None:
        """Done."""

    def tagged(self, tag: str) -> list[str]:
        """None."""
        del tag
        return []

    def untag(self, tag: str, keys: Sequence[str]) -> None:
        """Done."""


def _sha1(script: str) -> str:
    """The server's name for a script."""
    return sha1(script.encode(), usedforsecurity=False).hexdigest()
