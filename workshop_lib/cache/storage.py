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
from workshop_lib.cache.codec import MAX_BYTES, CorruptEntry, Entry
from workshop_lib.cache.connection import Command, ask, do
from workshop_lib.cache.keys import lock_key

Packed = Sequence[bytes]
"""An encoded entry, as the last arguments of the script that stores it."""
MIN_TAG_MS = 86_400_000
"""A tag's version is kept for at least a day after the last load under it."""
VERSION_BYTES = 16

# A script touches one entry and its lock, which are in the same slot of a cluster.
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
# A lock without an end is none of ours; nor does one of ours live longer than a load may take.
_LIMIT = """
local left = redis.call('PTTL', KEYS[1])
if left ~= -1 and left <= tonumber(ARGV[2]) then return 0 end
return redis.call('PEXPIRE', KEYS[1], left == -1 and ARGV[1] or ARGV[2])
"""


class Storage:
    """Each entry is one string. All methods may raise RedisError.

    Args:
        valkey: the client.
        max_bytes: larger values are not read: they are not entries of ours.

    """

    complete_script = _COMPLETE

    def __init__(self, valkey: Redis, max_bytes: int = MAX_BYTES) -> None:
        self.valkey: Any = valkey
        self.max_bytes = max_bytes

    # --- an entry's form

    def encode(self, entry: Entry) -> bytes:
        """The stored string of an entry. Raises Uncacheable."""
        return codec.encode(entry)

    def decode(self, data: bytes, max_bytes: int) -> Entry:
        """The reverse, for at most so many bytes. Raises CorruptEntry."""
        return codec.decode(data, max_bytes)

    def pack(self, entry: Entry) -> Packed:
        """The stored form of an entry. Raises Uncacheable."""
        return (self.encode(entry),)

    def unpack(self, packed: Packed) -> Entry:
        """A copy of the entry that was packed, of which no part is shared."""
        return self.decode(packed[0], len(packed[0]))  # it may be too large to store

    def command(self, key: str) -> Command:
        """What asks for the value of a key, but for no more than an entry can have."""
        return ("GETRANGE", key, 0, self.max_bytes)

    def parse(self, value: Any) -> Entry:
        """The entry in a value that is not empty. Raises CorruptEntry."""
        return self.decode(value, self.max_bytes)

    # --- read

    def read(
        self, keys: Sequence[str], tags: Collection[str] = ()
    ) -> tuple[list[Entry | None], int]:
        """The valid entries under some keys, and how many values could not be read.

        An entry that is not filed under all of `tags` is not valid: to invalidate one of them would
        not have invalidated the entry. With the right tags this takes one round trip.
        """
        answers = ask(self.valkey, *map(self.command, keys), *map(_ask_tag, tags))
        n = len(keys)
        return self._entries(answers[:n], tags, answers[n:])

    # --- lock

    def acquire(
        self, tokens: Mapping[str, str], lock_ms: int, tags: Collection[str], tag_ms: int
    ) -> tuple[dict[str, str], dict[str, Entry], dict[str, str]]:
        """Take the locks that are free, in one round trip.

        Args:
            tokens: one for each entry's key.
            lock_ms: how long the locks live.
            tags: keys of the tags that the entries will be filed under.
            tag_ms: how long an entry may live that carries them.

        Returns:
            The tokens of the locks that were free and the valid entries that there are, both by
            key, and the tags' versions, made if need be.

        """
        commands, kept = list[Command](), max(tag_ms, MIN_TAG_MS)
        for tag in tags:
            commands.append(("SET", tag, secrets.token_hex(VERSION_BYTES // 2), "NX", "PX", kept))
            commands += [("PEXPIRE", tag, kept), _ask_tag(tag)]
        for key, token in tokens.items():
            commands.append(("SET", lock_key(key), token, "NX", "PX", lock_ms))
            commands.append(self.command(key))
        answers = ask(self.valkey, *commands)
        tagged, locked = answers[: 3 * len(tags)], answers[3 * len(tags) :: 2]
        # What another program keeps under a tag's key is no version: the next load makes one.
        spoilt = [tag for tag, found in zip(tags, tagged[2::3], strict=True) if not _is_set(found)]
        if spoilt:
            ask(self.valkey, *[("UNLINK", tag) for tag in spoilt])
        for error in (*tagged, *locked):
            if isinstance(error, ResponseError):
                raise error
        entries, _ = self._entries(answers[3 * len(tags) + 1 :: 2], tags, tagged[2::3])
        held = {
            key: token for (key, token), free in zip(tokens.items(), locked, strict=True) if free
        }
        found = {key: entry for key, entry in zip(tokens, entries, strict=True) if entry}
        return held, found, _texts(tags, tagged[2::3])

    def renew(self, key: str, token: str, lock_ms: int) -> bool:
        """Prolong the lock, if it is still this token's. Returns whether it was."""
        return self.run(_IF_HELD, [lock_key(key)], token, "PEXPIRE", lock_ms)

    def limit_locks(self, keys: Iterable[str], lock_ms: int, most_ms: int) -> None:
        """Give locks that have no end one, and a nearer one to those that would live too long.

        Args:
            keys: of the entries.
            lock_ms: how long the first are left.
            most_ms: how long the second are left.

        """
        do(self.valkey, *[("EVAL", _LIMIT, 1, lock_key(key), lock_ms, most_ms) for key in keys])

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
            ("EVAL", self.complete_script, 2, key, lock_key(key), token, ttl_ms, *packed)
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
        self, answers: Iterable[Any], tags: Collection[str], versions: Iterable[object]
    ) -> tuple[list[Entry | None], int]:
        """The valid entries in the server's answers, and how many of these are not entries."""
        entries, corrupt = list[Entry | None](), 0
        for answer in answers:
            try:
                entries.append(self._entry(answer))
            except CorruptEntry:
                entries.append(None)
                corrupt += 1
        if not tags and not any(entry and entry.tags for entry in entries):
            return entries, corrupt
        current = _texts(tags, versions)
        filed = {tag for entry in entries if entry for tag in entry.tags}
        if unknown := filed - current.keys():
            asked = ask(self.valkey, *map(_ask_tag, unknown))
            current |= _texts(unknown, asked)

        def is_valid(entry: Entry) -> bool:
            is_filed = entry.tags.keys() >= set(tags)
            return is_filed and all(v and current[tag] == v for tag, v in entry.tags.items())

        return [entry if entry and is_valid(entry) else None for entry in entries], corrupt

    def _entry(self, answer: Any) -> Entry | None:
        """The entry in a server's answer; its tags are not asked about.

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


def _is_set(version: object) -> bool:
    return isinstance(version, bytes) and version != b""


def _texts(tags: Iterable[str], versions: Iterable[object]) -> dict[str, str]:
    """Versions by tag. A tag without one, or that is none of ours, has "": no entry is valid."""
    return {
        tag: version.decode("latin-1") if isinstance(version, bytes) else ""
        for tag, version in zip(tags, versions, strict=True)
    }
