"""Load tests: insert loads and mixed traffic, by local processes or Lambda functions."""

import lazy_loader

# On first use only: a worker needs neither pandas nor what draws.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
