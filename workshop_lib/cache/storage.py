"""Entries, locks and tags in Valkey, each read or changed in one atomic step.

An entry may be filed under tags. A tag is a key that holds a random version, and an entry carries
the versions that its tags had before it was loaded. It is valid only while each of them is still
the current one, so deleting one small key invalidates everything filed under a tag, loads under way
included. A version that was evicted or has expired makes misses, never old answers.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from workshop_lib.cache import codec
from workshop_lib.cache.codec import CorruptEntry, Entry
from workshop_lib.cache.connection import Command, ask, do
from workshop_lib.cache.keys import lock_key

Packed = Sequence[bytes]
"""An encoded entry: one string, or the fields and values of a hash by turns."""
TAG_MS = 30 * 86_400_000
"""How long after the last load under it a tag's version is kept."""
VERSION_BYTES = 16

# A script touches one entry and its lock, which are in the same slot of a cluster.
_COMPLETE = """
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
if ARGV[4] then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], unpack(ARGV, 3))
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
end
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
        max_bytes: larger values are not read: they are not entries of ours.

    """

    def __init__(self, valkey: Redis, max_bytes: int) -> None:
        self.valkey: Any = valkey
        self.max_bytes = max_bytes

    # --- an entry's form

    def pack(self, entry: Entry) -> Packed:
        """The stored form of an entry. Raises Uncacheable."""
        return (codec.encode(entry),)

    def unpack(self, packed: Packed) -> Entry:
        """A copy of the entry that was packed, of which no part is shared. Raises CorruptEntry."""
        return codec.decode(packed[0])

    def command(self, key: str) -> Command:
        """What asks for the value of a key, but for little more than an entry can have."""
        return ("GETRANGE", key, 0, self.max_bytes)

    def parse(self, value: bytes) -> Entry:
        """The entry in a value that is not empty. Raises CorruptEntry."""
        if len(value) > self.max_bytes:
            raise CorruptEntry(f"More than {self.max_bytes:,} bytes: none of ours has so many.")
        return self.unpack((value,))

    # --- read

    def read(
        self, keys: Sequence[str], tags: Collection[str] = ()
    ) -> tuple[list[Entry | None], int]:
        """The valid entries under some keys, and how many values could not be read.

        An entry that is filed under other tags is not valid: to invalidate one of these would not
        have invalidated the entry.
        """
        answers = ask(self.valkey, *map(self.command, keys), *map(_ask_tag, tags))
        n = len(keys)
        return self._entries(answers[:n], _versions(tags, answers[n:]))

    # --- lock

    def acquire(
        self, tokens: Mapping[str, str], lock_ms: int, tags: Collection[str]
    ) -> tuple[dict[str, str], dict[str, Entry], dict[str, str]]:
        """Take the locks that are free, in one round trip.

        Args:
            tokens: one for each entry's key.
            lock_ms: how long the locks live.
            tags: keys of the tags that the entries will be filed under.

        Returns:
            The tokens of the locks that were free and the valid entries that there are, both by
            key, and the tags' versions, made if need be.

        """
        commands = list[Command]()
        for tag in tags:
            version = secrets.token_hex(VERSION_BYTES // 2)
            commands.append(("SET", tag, version, "NX", "PX", TAG_MS))
            commands += [("PEXPIRE", tag, TAG_MS), _ask_tag(tag)]
        for key, token in tokens.items():
            commands.append(("SET", lock_key(key), token, "NX", "PX", lock_ms))
            commands.append(self.command(key))
        answers = ask(self.valkey, *commands)
        n = 3 * len(tags)
        tagged, locked = answers[:n], answers[n::2]
        for error in (*tagged, *locked):
            if isinstance(error, ResponseError):
                raise error
        versions = _versions(tags, tagged[2::3])
        entries, _ = self._entries(answers[n + 1 :: 2], versions)
        held = {
            key: token for (key, token), free in zip(tokens.items(), locked, strict=True) if free
        }
        found = {key: entry for key, entry in zip(tokens, entries, strict=True) if entry}
        return held, found, versions

    def renew(self, key: str, token: str, lock_ms: int) -> bool:
        """Prolong the lock, if it is still this token's. Returns whether it was."""
        return self.run(_IF_HELD, [lock_key(key)], token, "PEXPIRE", lock_ms)

    def limit_locks(self, keys: Iterable[str], lock_ms: int) -> None:
        """Give the locks of these entries an end, if they have none or a later one."""
        do(self.valkey, *[("PEXPIRE", lock_key(key), lock_ms, "LT") for key in keys])

    def release(self, key: str, token: str) -> bool:
        """Give the lock back, if it is still this token's. Returns whether it was."""
        return self.run(_IF_HELD, [lock_key(key)], token, "DEL")

    # --- write

    def complete(self, writes: Mapping[str, tuple[str, Packed, int]]) -> list[bool]:
        """Store entries and release their locks, each if its lock is still the token's.

        An empty token fits any lock, and none: what a lock's holder loads is older.

        Args:
            writes: by key, the token, the packed entry, and its time to live in milliseconds.

        Returns:
            Which were stored.

        """
        # With its TTL in one step: there is no moment without one.
        commands = [
            ("EVAL", _COMPLETE, 2, key, lock_key(key), token, ttl_ms, *packed)
            for key, (token, packed, ttl_ms) in writes.items()
        ]
        return list(map(bool, do(self.valkey, *commands)))

    def delete(self, *keys: str) -> int:
        """Remove entries and their locks. Returns how many entries there were."""
        # No transaction: the keys are in many slots. Each lock goes first, so that no loader can
        # store between the two commands what it read before.
        commands = [step for key in keys for step in (("DEL", lock_key(key)), ("UNLINK", key))]
        return sum(do(self.valkey, *commands)[1::2])

    def delete_tag(self, tag: str) -> None:
        """Invalidate all that is filed, or being loaded, under the tag."""
        do(self.valkey, ("UNLINK", tag))

    # --- ask the server

    def run(self, script: str, keys: Sequence[str], *arguments: Any) -> bool:
        """Whether a script that is given these keys and arguments returns anything but 0."""
        return bool(do(self.valkey, ("EVAL", script, len(keys), *keys, *arguments))[0])

    def _entries(
        self, answers: Iterable[Any], versions: Mapping[str, str]
    ) -> tuple[list[Entry | None], int]:
        """The valid entries in the server's answers, and how many of these are not entries."""
        entries, corrupt = list[Entry | None](), 0
        for answer in answers:
            try:
                entry = self._entry(answer)
            except CorruptEntry:
                entry, corrupt = None, corrupt + 1
            is_valid = entry and entry.tags == versions and all(versions.values())
            entries.append(entry if is_valid else None)
        return entries, corrupt

    def _entry(self, answer: Any) -> Entry | None:
        """The entry in a server's answer.

        Raises:
            CorruptEntry: it is none of ours.
            ResponseError: the answer is one, for another reason than the value's type.

        """
        if isinstance(answer, ResponseError):
            if "WRONGTYPE" in str(answer):
                raise CorruptEntry("Another program stores a list, a set or the like there.")
            raise answer
        return self.parse(answer) if answer else None


def _ask_tag(tag: str) -> Command:
    """What asks for a tag's version, but for no more, whatever another program keeps there."""
    return ("GETRANGE", tag, 0, VERSION_BYTES - 1)


def _versions(tags: Iterable[str], answers: Iterable[object]) -> dict[str, str]:
    """Versions by tag. A tag without one, or that is none of ours, has "": no entry is valid."""
    return {
        tag: answer.decode("latin-1") if isinstance(answer, bytes) else ""
        for tag, answer in zip(tags, answers, strict=True)
    }
