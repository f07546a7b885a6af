"""How a cache behaves: the attributes of Policy are keyword arguments of every cache."""

from __future__ import annotations

from dataclasses import dataclass

_MIN = {
    **dict.fromkeys(("ttl", "empty_ttl", "lock_seconds", "wait_seconds", "load_seconds"), 0.001),
    **dict.fromkeys(("jitter", "early_refresh", "stale_if_error", "keep_seconds", "max_bytes"), 0),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """How a cache behaves.

    Attributes:
        ttl: time to live of an entry, seconds.
        jitter: share of the TTL that is taken off at random, 0 to 1, so that entries made together
            do not expire together.
        empty_ttl: time to live of an answer that says "there is nothing"; the TTL if None.
        early_refresh: how eagerly an entry is refreshed before it expires; 0 never, 1 as in the
            paper by Vattani, Chierichetti and Lowenstein (2015), more is earlier.
        stale_if_error: how long beyond its TTL an entry may be served if loading fails, seconds.
        stale_on: the errors of a load that count as its failing: any, unless these are narrowed.
        keep_seconds: how long beyond its TTL an entry is kept to be renewed, where the source can
            say that it has not changed, seconds.
        single_flight: let one request load what several ask for at the same moment. False is the
            plain pattern: each request loads and stores, stampedes included, and a slow reader can
            put back an old value that was invalidated meanwhile.
        lock_seconds: how soon a loader that was killed is replaced, seconds. It is the life of the
            lock, which is renewed while loading.
        wait_seconds: how long a request waits for another one's load, seconds. After that its
            process loads for itself, and does not store what it loaded. Two loads that ask for each
            other's key both wait, up to twice that long: let only one of them ask for the other.
        load_seconds: how long a load may take and still be stored, seconds. After that the lock is
            not renewed any more, and another request may load.
        max_bytes: larger entries are not stored.

    Raises:
        ValueError: a value out of its range; the text names it.

    """

    ttl: float
    jitter: float = 0.0
    empty_ttl: float | None = None
    early_refresh: float = 0.0
    stale_if_error: float = 0.0
    stale_on: tuple[type[Exception], ...] = (Exception,)
    keep_seconds: float = 0.0
    single_flight: bool = True
    lock_seconds: float = 2.0
    wait_seconds: float = 30.0
    load_seconds: float = 60.0
    max_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        for name, least in _MIN.items():
            value, most = getattr(self, name), 1 if name == "jitter" else 1e9
            if value is None and name == "empty_ttl":
                continue
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not least <= value <= most:
                wanted = f"a number, at least {least} and at most {most:g}"
                raise ValueError(f"{name} is {value!r}; it must be {wanted}")
        try:
            issubclass(Exception, self.stale_on)
        except TypeError:
            raise ValueError(
                f"stale_on is {self.stale_on!r}; it must be a tuple of exception classes"
            ) from None

    @property
    def kept_beyond(self) -> float:
        """How long beyond its TTL the server keeps an entry, seconds."""
        return max(self.stale_if_error, self.keep_seconds)
