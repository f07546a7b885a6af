"""A cache on paper: requests replayed against it by seed, without a server or a clock (pure)."""

import lazy_loader

# On first use only: what a cache needs of it needs no numpy.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
