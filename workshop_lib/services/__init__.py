"""Where the servers are: local engines, servers of your own, or AWS; all become endpoints."""

import lazy_loader

# On first use only: the supervisor and processes that only read need no client of AWS.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
