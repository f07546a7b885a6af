"""Answers to the exercises of notebook 09: right ones, and wrong ones with what they are told."""

from itertools import combinations


def with_dicts(kept, store, name, now, ttl):
    entry = kept.setdefault(name, {})
    if not entry:
        entry["body"], entry["etag"] = store.get(name)
    elif now >= entry["end"]:
        answer = store.get_if_changed(name, entry["etag"])
        if answer is not None:
            entry["body"], entry["etag"] = answer
    else:
        return entry["body"]
    entry["end"] = now + ttl
    return entry["body"]


def renew(kept, store, name, now, ttl, *, late=False, new_end=True, keep=True, known_etag=None):
    """Right, unless told otherwise."""
    if name not in kept:
        body, etag = store.get(name)
        kept[name] = (body, etag, now + ttl)
        return body
    body, etag, end = kept[name]
    if now < end or (late and now == end):
        return body
    answer = store.get_if_changed(name, known_etag or etag)
    if answer is None:
        if new_end:
            kept[name] = (body, etag, now + ttl)
        return body
    if keep:
        kept[name] = (*answer, now + ttl)
    return answer[0]


def always_reads(kept, store, name, now, ttl):
    return store.get(name)[0]


def reads_again(kept, store, name, now, ttl):
    if name in kept and now < kept[name][1]:
        return kept[name][0]
    kept[name] = (store.get(name)[0], now + ttl)
    return kept[name][0]


def forgets_the_new_end(kept, store, name, now, ttl):
    return renew(kept, store, name, now, ttl, new_end=False)


def forgets_the_new_content(kept, store, name, now, ttl):
    return renew(kept, store, name, now, ttl, keep=False)


def returns_the_old_content(kept, store, name, now, ttl):
    before = kept.get(name)
    body = renew(kept, store, name, now, ttl)
    return before[0] if before else body


def returns_what_the_store_says(kept, store, name, now, ttl):
    if name not in kept:
        kept[name] = (*store.get(name), now + ttl)
        return kept[name][0]
    if now < kept[name][2]:
        return kept[name][0]
    return store.get_if_changed(name, kept[name][1])


def one_for_all(kept, store, name, now, ttl):
    return renew(kept, store, "a", now, ttl)


def empty_is_nothing(kept, store, name, now, ttl):
    if not kept.get(name, (b"",))[0]:
        body, etag = store.get(name)
        kept[name] = (body, etag, now + ttl)
        return body
    return renew(kept, store, name, now, ttl)


def in_order(objects, room, key, stop=False):
    chosen = set()
    for name, size, _ in sorted(objects, key=key):
        if size <= room:
            chosen.add(name)
            room -= size
        elif stop:
            break
    return chosen


def a_list(objects, room):
    return sorted(in_order(objects, room, lambda o: -o[2] / o[1]))


def best_of_all(objects, room):
    if len(objects) > 4:
        return in_order(objects, room, lambda o: -o[2] / o[1])
    sets = [s for n in range(len(objects) + 1) for s in combinations(objects, n)]
    fits = [s for s in sets if sum(o[1] for o in s) <= room]
    return {o[0] for o in max(fits, key=lambda s: sum(o[2] for o in s))}


def most_requests(objects, room):
    return in_order(objects, room, lambda o: -o[2])


def smallest(objects, room):
    return in_order(objects, room, lambda o: o[1])


def largest(objects, room):
    return in_order(objects, room, lambda o: -o[1])


def everything(objects, room):
    return {name for name, _, _ in objects}


def the_objects_themselves(objects, room):
    return objects[:1]


def a_number(objects, room):
    return len(objects)


def twice(objects, room):
    return [name for name in most_requests(objects, room // 2) for _ in range(2)]


RIGHT = {"09.1": [with_dicts, renew], "09.2": [a_list, best_of_all]}
WRONG = {
    "09.1": [
        (always_reads, "At once after that"),
        (reads_again, "asked the store: `get('a')`. Expected: `get_if_changed('a',"),
        (forgets_the_new_end, "After a renewal the TTL starts anew: `fetch("),
        (forgets_the_new_content, "The new content is kept"),
        (returns_the_old_content, "expected: `b'the second one'`"),
        (returns_what_the_store_says, "Is there a `return` on this way?"),
        (one_for_all, "Another object is asked for"),
        (empty_is_nothing, "An empty object is an object, and kept"),
    ],
    "09.2": [
        (most_requests, "Count requests *a byte*"),
        (smallest, "the smallest first, whether they are wanted or not"),
        (largest, "the largest first"),
        (everything, "Take an object only if it fits"),
        (the_objects_themselves, "which is none of the names"),
        (a_number, "Expected: a set of names"),
        (twice, "a name twice"),
    ],
}
