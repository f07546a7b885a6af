"""How entries lie in Valkey: read, locked, written and deleted in single steps.

An entry may be filed under tags. A tag is a key with a random version, and an entry carries the
versions that its tags had before it was loaded. It counts only while each of them is still the
current one; so deleting one small key invalidates everything filed under a tag, also loads that are
under way. A version that was evicted or has expired makes misses, never old answers.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from workshop_lib.cache import codec
from workshop_lib.cache.codec import MAX_BYTES, CorruptEntry, Entry
from workshop_lib.cache.keys import lock_key

BATCH = 1_000
"""Keys read or deleted per round trip."""
MIN_TAG_MS = 86_400_000
"""A tag's version is kept for at least a day after the last load under it."""

# The script touches one entry and its lock, which lie in the same slot of a cluster.
_COMPLETE = """
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
redis.call('DEL', KEYS[2])
return 1
"""
_IF_HELD = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call(ARGV[2], KEYS[1], unpack(ARGV, 3))
"""


class Storage:
    """Each entry is one string. All methods may raise RedisError.

    Args:
        valkey: the client.
        max_bytes: no larger value is read: it is not an entry of ours.
        encode: turns an entry into bytes; raises Uncacheable.
        decode: the reverse, for at most so many bytes; raises CorruptEntry.

    """

    complete_script = _COMPLETE

    def __init__(
        self,
        valkey: Redis,
        max_bytes: int = MAX_BYTES,
        encode: Callable[[Entry], Any] = codec.encode,
        decode: Callable[[Any, int], Entry] = codec.decode,
    ) -> None:
        self.valkey: Any = valkey
        self.max_bytes = max_bytes
        self.encode, self.decode = encode, decode

    def get(self, key: str, tags: Collection[str] = ()) -> Entry | None:
        """The entry under the key, unless one of its tags was invalidated.

        With the tags that it is likely filed under, in one round trip.

        Raises:
            CorruptEntry: the key holds something that is no entry of ours.

        """
        if not tags:
            try:
                answer = self.ask(self.valkey, key)
            except ResponseError as error:
                answer = error
            return self.only_valid([self.parse(answer)])[0]
        pipeline = self.valkey.pipeline(transaction=False)
        self.ask(pipeline, key)
        for tag in tags:
            pipeline.get(tag)
        answer, *versions = pipeline.execute(raise_on_error=False)
        return self.only_valid([self.parse(answer)], _texts(tags, versions))[0]

    def get_many(self, keys: Sequence[str]) -> list[Entry | None]:
        """The entries under many keys; None for what is not there, or cannot be read."""
        # Without a transaction: on a cluster the keys lie in different slots.
        pipeline = self.valkey.pipeline(transaction=False)
        for key in keys:
            self.ask(pipeline, key)
        return self.only_valid(map(self._readable, pipeline.execute(raise_on_error=False)))

    def acquire(
        self, tokens: Mapping[str, str], lock_ms: int
    ) -> dict[str, tuple[bool, Entry | None]]:
        """Take the locks of entries that are free, in one round trip.

        Args:
            tokens: one for each key.
            lock_ms: how long the locks live.

        Returns:
            By key, whether that worked, and what the key holds now.

        """
        pipeline = self.valkey.pipeline(transaction=False)
        for key, token in tokens.items():
            pipeline.set(lock_key(key), token, nx=True, px=lock_ms)
            self.ask(pipeline, key)
        answers = pipeline.execute(raise_on_error=False)
        if failed := next((one for one in answers[::2] if isinstance(one, Exception)), None):
            raise failed
        entries = self.only_valid(map(self._readable, answers[1::2]))
        return dict(zip(tokens, zip(map(bool, answers[::2]), entries, strict=True), strict=True))

    def renew(self, key: str, token: str, lock_ms: int) -> bool:
        """Prolong the lock, if it is still this token's. Returns whether it was."""
        return bool(self.run(_IF_HELD, [lock_key(key)], token, "PEXPIRE", lock_ms))

    def release(self, key: str, token: str) -> bool:
        """Give the lock back, if it is still this token's. Returns whether it was."""
        return bool(self.run(_IF_HELD, [lock_key(key)], token, "DEL"))

    def complete(self, writes: Mapping[str, tuple[str, Any, int]]) -> list[bool]:
        """Store entries and release their locks, each if its lock is still the token's.

        With an empty token, whosever it is: what its holder loads is older.

        Args:
            writes: by key, the token, the encoded entry, and its time to live in milliseconds.

        Returns:
            Which were stored.

        """
        # With its TTL in one step: there is no moment without one.
        pipeline = self.valkey.pipeline(transaction=False)
        for key, (token, packed, ttl_ms) in writes.items():
            words = (token, ttl_ms, *self.arguments(packed))
            pipeline.eval(self.complete_script, 2, key, lock_key(key), *words)
        return list(map(bool, pipeline.execute()))

    def delete(self, keys: Sequence[str], forget: Collection[str] = ()) -> int:
        """Remove entries and their locks, and forget tags. Returns how many entries there were."""
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
        """Invalidate all that is filed, or being loaded, under the tag."""
        self.valkey.unlink(tag)

    def tag_versions(self, tags: Collection[str], ttl_ms: int) -> dict[str, str]:
        """The current versions of tags, made if need be, to be asked for before a load.

        Args:
            tags: keys of tags.
            ttl_ms: how long an entry may live that carries them.

        """
        kept = max(ttl_ms, MIN_TAG_MS)
        pipeline = self.valkey.pipeline(transaction=False)
        for tag in tags:
            pipeline.set(tag, secrets.token_hex(8), nx=True, px=kept).pexpire(tag, kept).get(tag)
        return _texts(tags, pipeline.execute()[2::3])

    def only_valid(
        self, entries: Iterable[Entry | None], known: Mapping[str, str] | None = None
    ) -> list[Entry | None]:
        """The entries, with None for what was invalidated by a tag; one round trip at most.

        Args:
            entries: as they were read.
            known: versions of tags that are known already.

        """
        entries, current = list(entries), dict(known or {})
        unknown = {tag for entry in entries if entry for tag in entry.tags} - current.keys()
        if unknown:
            pipeline = self.valkey.pipeline(transaction=False)
            for tag in unknown:
                pipeline.get(tag)
            current |= _texts(unknown, pipeline.execute(raise_on_error=False))
        return [
            entry
            if entry and all(v and current[tag] == v for tag, v in entry.tags.items())
            else None
            for entry in entries
        ]

    def arguments(self, packed: Any) -> Sequence[Any]:
        """An encoded entry as arguments of the script that stores it."""
        return (packed,)

    def size(self, packed: Any) -> int:
        """Of an encoded entry, bytes."""
        return len(packed)

    def unpack(self, packed: Any) -> Entry:
        """A copy of the entry that was encoded, of which no part is shared."""
        return self.decode(packed, self.size(packed))  # it may be too large to store

    def parse(self, answer: Any) -> Entry | None:
        """The entry in a server's answer; its tags are not asked about.

        Raises:
            CorruptEntry: it is none of ours.
            ResponseError: the answer is one, for another reason than the value's type.

        """
        if isinstance(answer, Exception):
            if "WRONGTYPE" in str(answer):
                raise CorruptEntry("Another program keeps a list, a set or the like there.")
            raise answer
        return self.decode(answer, self.max_bytes) if answer else None

    def ask(self, client: Any, key: str) -> Any:
        """Ask a client or a pipeline for a value, and not for more than an entry can have."""
        return client.getrange(key, 0, self.max_bytes)

    def run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        """What a script returns that is given these keys and arguments."""
        return self.valkey.eval(script, len(keys), *keys, *arguments)

    def _readable(self, answer: Any) -> Entry | None:
        with suppress(CorruptEntry):
            return self.parse(answer)
        return None


def _texts(tags: Iterable[str], versions: Iterable[object]) -> dict[str, str]:
    """Versions by tag. A tag that has none, or is no tag of ours, has "": no entry counts then."""
    return {
        tag: version.decode("latin-1") if isinstance(version, bytes) else ""
        for tag, version in zip(tags, versions, strict=True)
    }
