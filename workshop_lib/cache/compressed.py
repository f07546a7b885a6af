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
MOST_BYTES = 1 << 28
"""What would be larger when unpacked is no entry of ours."""


class CompressedCodec:
    """Compresses what is above a size; smaller entries stay as they are, and so does what grows.

    Args:
        above: size from which on it is tried, bytes.
        inner: how entries are written before.

    """

    def __init__(self, above: int = 1_024, inner: Codec = codec) -> None:
        self.above = above
        self.inner = inner

    def encode(self, entry: Entry) -> bytes:
        """See Codec."""
        plain = self.inner.encode(entry)
        if len(plain) <= self.above:
            return plain
        packed = _MARK + zlib.compress(plain, LEVEL)
        return packed if len(packed) < len(plain) else plain

    def decode(self, data: bytes) -> Entry:
        """See Codec."""
        if not data.startswith(_MARK):
            return self.inner.decode(data)
        unpacker = zlib.decompressobj()
        try:
            plain = unpacker.decompress(memoryview(data)[len(_MARK) :], MOST_BYTES)
        except zlib.error as error:
            raise CorruptEntry(f"The entry cannot be unpacked: {error}.") from None
        if not unpacker.eof or unpacker.unused_data:
            raise CorruptEntry("The entry is cut off, too long, or followed by something else.")
        return self.inner.decode(plain)
