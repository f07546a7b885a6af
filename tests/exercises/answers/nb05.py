"""Answers to the exercises of notebook 05: right ones, and wrong ones with what they are told."""

import random
from collections import OrderedDict


def fifo(stream, capacity):
    held, hits = OrderedDict(), 0
    for key in stream:
        if key in held:
            hits += 1
            continue
        if len(held) == capacity:
            held.popitem(last=False)
        held[key] = None
    return hits / len(stream) if stream else 0.0


def lru(stream, capacity, last=False, held=None):
    held, hits = OrderedDict() if held is None else held, 0
    for key in stream:
        if key in held:
            hits += 1
            held.move_to_end(key)
            continue
        if len(held) >= capacity:
            held.popitem(last=last)
        held[key] = None
    return hits / len(stream) if stream else 0.0


def no_requests_are_a_fault(stream, capacity):
    return lru(stream, capacity) * len(stream) / len(stream)


def no_requests_are_all_hits(stream, capacity):
    return lru(stream, capacity) if stream else 1.0


def eats_the_stream(stream, capacity):
    held, hits, requests = OrderedDict(), 0, len(stream)
    while stream:
        key = stream.pop(0)
        hits += key in held
        held[key] = None
        held.move_to_end(key)
        if len(held) > capacity:
            held.popitem(last=False)
    return hits / max(requests, 1)


def one_cache_for_all_calls(stream, capacity, held=OrderedDict()):  # noqa: B006 - the mistake
    return lru(stream, capacity, held=held)


def prints_only(stream, capacity):
    lru(stream, capacity)


def no_capacity(stream):
    return lru(stream, 2)


FIELDS = {"lru": "idle", "lfu": "uses", "ttl": "ttl"}


def goes(entries, policy, high=("lru",)):
    if not entries or policy == "noeviction":
        return None
    rule = policy.partition("-")[2]
    if rule == "random":
        return random.choice(entries)["key"]
    choose = max if rule in high else min
    return choose(entries, key=lambda entry: entry[FIELDS[rule]])["key"]


def candidates(entries, policy):
    volatile = policy.startswith("volatile")
    return [entry for entry in entries if entry["ttl"] is not None or not volatile]


def all_are_candidates(entries, policy):
    return goes(entries, policy)


def compares_none(entries, policy):
    return goes(entries if policy == "volatile-ttl" else candidates(entries, policy), policy)


def random_takes_any(entries, policy):
    return goes(entries if policy == "volatile-random" else candidates(entries, policy), policy)


def none_counts_as_zero(entries, policy):
    return goes([{**entry, "ttl": entry["ttl"] or 0} for entry in entries], policy)


def nobody_is_a_fault(entries, policy):
    if policy == "noeviction":
        return None
    found = candidates(entries, policy)
    return goes(found, policy) if found else max(found, key=lambda entry: entry["idle"])["key"]


def an_empty_cache_is_a_fault(entries, policy):
    found = candidates(entries, policy)
    if policy == "noeviction" or (policy.startswith("volatile") and not found):
        return None
    return goes(found, policy) or min(found, key=lambda entry: entry["idle"])


def a_list(stream, capacity):
    held, hits = [], 0
    for key in stream:
        if key in held:
            hits += 1
            held.remove(key)
        held = [*held, key][-capacity:]
    return hits / max(len(stream), 1)


def times_of_use(stream, capacity):
    last, hits = {}, 0
    for now, key in enumerate(stream):
        hits += key in last
        last[key] = now
        if len(last) > capacity:
            del last[min(last, key=last.get)]
    return hits / len(stream) if stream else 0


def always_the_first(entries, policy):
    found = candidates(entries, policy)
    return found[0]["key"] if found and policy.endswith("random") else goes(found, policy)


def sorts_in_place(entries, policy):
    entries[:] = [] if policy == "noeviction" else candidates(entries, policy)
    field = FIELDS.get(policy.partition("-")[2], "key")
    entries.sort(key=lambda entry: entry[field], reverse=field == "idle")
    return entries.pop(0)["key"] if entries else None


RIGHT = {
    "05.1": [a_list, times_of_use],
    "05.2": [always_the_first, sorts_in_place],
}
WRONG = {
    "05.1": [
        (fifo, "This is FIFO"),
        (no_requests_are_a_fault, "`lru_hit_ratio([], 3)` stopped with ZeroDivisionError"),
        (no_requests_are_all_hits, "returned `1.0`; expected: 0.0. Without requests"),
        (eats_the_stream, "changed the stream: there were 5 requests, and now it is `[]`"),
        (one_cache_for_all_calls, "begins empty at each call"),
        (prints_only, "Is there a `return`?"),
        (no_capacity, "The check calls `lru_hit_ratio(stream, capacity)`"),
    ],
    "05.2": [
        (all_are_candidates, "a volatile policy looks only at keys that have one"),
        (compares_none, "has the `ttl` None, which is not a number"),
        (random_takes_any, "`key_to_evict(entries, 'volatile-random')` returned"),
        (none_counts_as_zero, "has no TTL: a volatile policy looks only"),
        (nobody_is_a_fault, "Nobody is a candidate here"),
        (an_empty_cache_is_a_fault, "The entries, where the cache is empty: none."),
    ],
}
