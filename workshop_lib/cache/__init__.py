"""Modules that keep answers close: keys, the codec, and the caches built on them."""
