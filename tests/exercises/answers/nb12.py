"""Answers to the exercise of notebook 12: right ones, and wrong ones with what they are told."""


def by_hand(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu):
    hits = reads_per_s * 2_628_000 * hit_ratio
    misses = reads_per_s * 2_628_000 - hits
    units = (hits + misses) * max(kb, 1) + misses
    return max(gb, 0.1) * 730 * gb_hour + units * million_ecpu / 1_000_000


def month(gb, rate, ratio, kb, gb_hour, price, *, least=0.1, hours=730, hour=3600, one=1, look=1,
          fill=1, million=1e6):  # fmt: skip
    item, reads = max(one, kb), rate * hours * hour
    ecpu = reads * (ratio * item + (1 - ratio) * (look + fill * item))
    return max(least, gb) * hours * gb_hour + ecpu / million * price


def in_cents(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu):
    return round(by_hand(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu), 2)


def no_least(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu):
    return month(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu, least=0)


def thirty_days(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu):
    return month(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu, hours=720)


def reads_an_hour(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu):
    return month(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu, hour=1)


def a_text(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu):
    return f"{by_hand(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu):.2f} USD"


def returns_nothing(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu):
    by_hand(gb, reads_per_s, hit_ratio, kb, gb_hour, million_ecpu)


RIGHT = {"12.1": [by_hand, in_cents]}
WRONG = {
    "12.1": [
        (no_least, "at least 0.1 GB"),
        (thirty_days, "730 hours here, not 720"),
        (reads_an_hour, "An hour has 3,600 seconds"),
        (a_text, "returned `'122.64 USD'`; expected a number."),
        (returns_nothing, "returned `None`; expected a number. Is there a `return`?"),
    ]
}
