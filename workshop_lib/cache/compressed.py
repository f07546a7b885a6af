"""Entries as another codec writes them, and compressed where they are large enough to gain."""

from __future__ import annotations

import zlib

from workshop_lib.cache import codec
from workshop_lib.cache.codec import CorruptEntry, Entry
from workshop_lib.cache.storage import Codec

_MARK = b"\xc1WZ\x01"
"""Begins no frame of `codec`; the last byte is the version."""
LEVEL = 1
"""zlib's fastest: a cache is asked for speed, and higher levels win few bytes for much time."""


class CompressedCodec:
    """Compresses what is above a size; smaller entries stay as they are, and so does what grows.

    Args:
        above: size from which on it is tried, bytes.
        inner: how entries are written before.
        max_bytes: size up to which it is tried, bytes. Nothing larger is unpacked, so that a few
            bytes cannot fill a reader's memory. Give it what the cache has as `max_bytes`.

    """

    def __init__(
        self, above: int = 1_024, inner: Codec = codec, max_bytes: int = codec.MAX_BYTES
    ) -> None:
        self.above = above
        self.inner = inner
        self.max_bytes = max_bytes

    def encode(self, entry: Entry) -> bytes:
        """See Codec."""
        plain = self.inner.encode(entry)
        if not self.above < len(plain) <= self.max_bytes:
            return plain
        packed = _MARK + zlib.compress(plain, LEVEL)
        return packed if len(packed) < len(plain) else plain

    def decode(self, data: bytes, max_bytes: int = codec.MAX_BYTES) -> Entry:
        """See Codec. `max_bytes` is of what is stored, `self.max_bytes` of it unpacked."""
        if not data.startswith(_MARK):
            return self.inner.decode(data, max_bytes)
        codec.check_size(data, max_bytes)
        unpacker = zlib.decompressobj()
        try:
            # A limit of 0 would mean none; one byte more shows what is too large.
            plain = unpacker.decompress(memoryview(data)[len(_MARK) :], self.max_bytes + 1)
        except zlib.error as error:
            raise CorruptEntry(f"The entry cannot be unpacked: {error}.") from None
        if not unpacker.eof or unpacker.unused_data:
            raise CorruptEntry("The entry is cut off, too long, or followed by something else.")
        return self.inner.decode(plain, self.max_bytes)
