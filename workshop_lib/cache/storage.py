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
from workshop_lib.cache.connection import Command, ask, do
from workshop_lib.cache.keys import lock_key

Packed = Sequence[bytes]
"""An encoded entry, as the last arguments of the script that stores it."""
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
        encode: Callable[[Entry], bytes] = codec.encode,
        decode: Callable[[bytes, int], Entry] = codec.decode,
    ) -> None:
        self.valkey: Any = valkey
        self.max_bytes = max_bytes
        self._encode, self._decode = encode, decode

    # --- an entry's form

    def pack(self, entry: Entry) -> Packed:
        """The stored form of an entry. Raises Uncacheable."""
        return (self._encode(entry),)

    def unpack(self, packed: Packed) -> Entry:
        """A copy of the entry that was packed, of which no part is shared."""
        return self._decode(packed[0], len(packed[0]))  # it may be too large to store

    def command(self, key: str) -> Command:
        """What asks for the value under a key, and not for more than an entry can have."""
        return ("GETRANGE", key, 0, self.max_bytes)

    def parse(self, value: Any) -> Entry:
        """The entry in a value that is not empty. Raises CorruptEntry."""
        return self._decode(value, self.max_bytes)

    # --- read

    def get(self, key: str, tags: Collection[str] = ()) -> Entry | None:
        """The entry under the key, unless one of its tags was invalidated.

        With the tags that it is likely filed under, in one round trip.

        Raises:
            CorruptEntry: the key holds something that is no entry of ours.

        """
        answer, *versions = ask(self.valkey, self.command(key), *[("GET", tag) for tag in tags])
        entry = self._entry(answer)
        if entry is None or not entry.tags:
            return entry
        return self._valid([entry], _texts(tags, versions))[0]

    def get_many(self, keys: Iterable[str]) -> list[Entry | None]:
        """The entries under many keys; None for what is not there, or cannot be read."""
        answers = ask(self.valkey, *map(self.command, keys))
        return self._valid(list(map(self._readable, answers)), {})

    def tag_versions(self, tags: Collection[str], ttl_ms: int) -> dict[str, str]:
        """The current versions of tags, made if need be, to be asked for before a load.

        Args:
            tags: keys of tags.
            ttl_ms: how long an entry may live that carries them.

        """
        kept, commands = max(ttl_ms, MIN_TAG_MS), list[Command]()
        for tag in tags:
            commands.append(("SET", tag, secrets.token_hex(8), "NX", "PX", kept))
            commands += [("PEXPIRE", tag, kept), ("GET", tag)]
        return _texts(tags, do(self.valkey, *commands)[2::3])

    # --- lock

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
        commands = list[Command]()
        for key, token in tokens.items():
            commands.append(("SET", lock_key(key), token, "NX", "PX", lock_ms))
            commands.append(self.command(key))
        answers = ask(self.valkey, *commands)
        if failed := [one for one in answers[::2] if isinstance(one, ResponseError)]:
            raise failed[0]
        entries = self._valid(list(map(self._readable, answers[1::2])), {})
        return dict(zip(tokens, zip(map(bool, answers[::2]), entries, strict=True), strict=True))

    def renew(self, key: str, token: str, lock_ms: int) -> bool:
        """Prolong the lock, if it is still this token's. Returns whether it was."""
        return self.run(_IF_HELD, [lock_key(key)], token, "PEXPIRE", lock_ms)

    def release(self, key: str, token: str) -> bool:
        """Give the lock back, if it is still this token's. Returns whether it was."""
        return self.run(_IF_HELD, [lock_key(key)], token, "DEL")

    # --- write

    def complete(self, writes: Mapping[str, tuple[str, Packed, int]]) -> list[bool]:
        """Store entries and release their locks, each if its lock is still the token's.

        With an empty token, whosever it is: what its holder loads is older.

        Args:
            writes: by key, the token, the packed entry, and its time to live in milliseconds.

        Returns:
            Which were stored.

        """
        # With its TTL in one step: there is no moment without one.
        commands = [
            ("EVAL", self.complete_script, 2, key, lock_key(key), token, ttl_ms, *packed)
            for key, (token, packed, ttl_ms) in writes.items()
        ]
        return list(map(bool, do(self.valkey, *commands)))

    def delete(self, *keys: str) -> int:
        """Remove entries and their locks. Returns how many entries there were."""
        # No transaction: the keys lie in many slots. Each lock goes first, so that no loader can
        # store between the two commands what it read before.
        commands = [step for key in keys for step in (("DEL", lock_key(key)), ("UNLINK", key))]
        return sum(do(self.valkey, *commands)[1::2])

    def forget_tag(self, tag: str) -> None:
        """Invalidate all that is filed, or being loaded, under the tag."""
        do(self.valkey, ("UNLINK", tag))

    # --- ask the server

    def run(self, script: str, keys: Sequence[str], *arguments: Any) -> bool:
        """Whether a script that is given these keys and arguments returns anything but 0."""
        return bool(do(self.valkey, ("EVAL", script, len(keys), *keys, *arguments))[0])

    def _valid(self, entries: list[Entry | None], known: Mapping[str, str]) -> list[Entry | None]:
        """The entries, with None for what was invalidated by a tag; one round trip at most.

        Args:
            entries: as they were read.
            known: versions of tags that are known already.

        """
        unknown = {tag for one in entries if one for tag in one.tags} - known.keys()
        if unknown:
            versions = ask(self.valkey, *[("GET", tag) for tag in unknown])
            known = {**known, **_texts(unknown, versions)}
        return [
            one if one and all(v and known[tag] == v for tag, v in one.tags.items()) else None
            for one in entries
        ]

    def _entry(self, answer: Any) -> Entry | None:
        """The entry in a server's answer; its tags are not asked about.

        Raises:
            CorruptEntry: it is none of ours.
            ResponseError: the answer is one, for another reason than the value's type.

        """
        if isinstance(answer, ResponseError):
            if "WRONGTYPE" in str(answer):
                raise CorruptEntry("Another program keeps a list, a set or the like there.")
            raise answer
        return self.parse(answer) if answer else None

    def _readable(self, answer: Any) -> Entry | None:
        with suppress(CorruptEntry):
            return self._entry(answer)
        return None


def _texts(tags: Iterable[str], versions: Iterable[object]) -> dict[str, str]:
    """Versions by tag. A tag that has none, or is no tag of ours, has "": no entry counts then."""
    return {
        tag: version.decode("latin-1") if isinstance(version, bytes) else ""
        for tag, version in zip(tags, versions, strict=True)
    }
