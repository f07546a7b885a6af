# What `simulate` holds; `__init__.py` imports each name on first use.

from .distances import (
    TtlOutcome,
    adjust_ratios,
    hit_ratios,
    sample_keys,
    stack_distances,
    ttl_outcome,
)
from .eviction import (
    POLICIES,
    hits,
    replay,
)
from .streams import (
    poisson_times,
    scan_stream,
    shifting_stream,
    zipf_probabilities,
    zipf_stream,
)
from .theory import (
    break_even,
    che_lru_hit_ratio,
    should_refresh_early,
    stale_share,
    ttl_hit_ratio,
)

__all__ = [
    "POLICIES",
    "TtlOutcome",
    "adjust_ratios",
    "break_even",
    "che_lru_hit_ratio",
    "hit_ratios",
    "hits",
    "poisson_times",
    "replay",
    "sample_keys",
    "scan_stream",
    "shifting_stream",
    "should_refresh_early",
    "stack_distances",
    "stale_share",
    "ttl_hit_ratio",
    "ttl_outcome",
    "zipf_probabilities",
    "zipf_stream",
]
