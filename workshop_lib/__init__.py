"""What stands behind a notebook's cells. The list of names a cell may use is in `__init__.pyi`."""

import lazy_loader

# On first use only: the supervisor and `workshop --help` need neither pandas nor matplotlib.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
