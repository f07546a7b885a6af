"""What makes Aurora DSQL different from other PostgreSQL servers: its limits, rules, conflicts."""

import lazy_loader

# On first use only: opening the workshop needs no linter and reads no token.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
