"""The workshop's data: tables, seeded generators, and loading that can be repeated."""

import lazy_loader

# On first use only: opening the workshop loads nothing.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
