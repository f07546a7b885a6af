"""Notebook 01: amounts that depend on a seed and a number, on both and on nothing else."""

from __future__ import annotations

from itertools import product

from workshop_lib.exercises.check import Check

SEEDS, NUMBERS = range(20), range(40)
WEIGHTS = [10**digits for digits in range(1, 7)]
"""By which a seed may have been multiplied before a number was added to it."""


def order_amount(check: Check) -> None:
    """The same amount in every process, all amounts in range, and few of them alike."""
    check.try_cases()

    def amount(seed: int, number: int) -> int:
        return int(check.call(seed, number, shown=f"`order_amount({seed}, {number})`"))

    here, elsewhere = amount(42, 1), check.attempt_elsewhere(42, 1).value
    check.judge("elsewhere", here=here, elsewhere=elsewhere)
    check.facts |= {"by_seed": {amount(seed, 7) for seed in range(40)}}
    check.facts |= {"by_number": {amount(42, number) for number in range(40)}}
    check.facts |= {"pairs": len(SEEDS) * len(NUMBERS)}
    check.judge("drawn", amounts={amount(*pair) for pair in product(SEEDS, NUMBERS)})
    for weight in WEIGHTS:
        shared = all(amount(seed, 7) == amount(0, seed * weight + 7) for seed in range(1, 4))
        check.judge("added", shared=shared, weight=weight)
    shared = all(amount(seed, 23) == amount(10 * seed + 2, 3) for seed in range(1, 9))
    check.judge("joined", shared=shared)


JUDGES = {"01.1": order_amount}
