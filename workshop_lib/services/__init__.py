"""Where the servers are: embedded engines, servers of one's own, or AWS; all end as Endpoints."""

import lazy_loader

# On first use only: the engines' supervisor and load workers need no client of AWS.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
