# What `simulate` holds; `__init__.py` imports each name on first use.

from .eviction import (
    POLICIES,
    Replay,
    Step,
    replay,
    steps,
)
from .expiry import (
    EarlyReplay,
    TtlReplay,
    replay_early,
    replay_ttl,
    should_refresh_early,
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
    stale_share,
    ttl_hit_ratio,
    ttl_hit_ratio_mix,
)

__all__ = [
    "POLICIES",
    "EarlyReplay",
    "Replay",
    "Step",
    "TtlReplay",
    "break_even",
    "che_lru_hit_ratio",
    "poisson_times",
    "replay",
    "replay_early",
    "replay_ttl",
    "scan_stream",
    "shifting_stream",
    "should_refresh_early",
    "stale_share",
    "steps",
    "ttl_hit_ratio",
    "ttl_hit_ratio_mix",
    "zipf_probabilities",
    "zipf_stream",
]
