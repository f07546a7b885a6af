"""The exercises of the notebooks: a check that says what is wrong, staged hints, a solution."""

from workshop_lib.errors import WorkshopError
from workshop_lib.exercises.engine import Exercise
from workshop_lib.exercises.nb02 import EXERCISES as OF_NOTEBOOK_02
from workshop_lib.exercises.nb03 import EXERCISES as OF_NOTEBOOK_03
from workshop_lib.exercises.nb04 import EXERCISES as OF_NOTEBOOK_04
from workshop_lib.exercises.nb05 import EXERCISES as OF_NOTEBOOK_05
from workshop_lib.exercises.nb06 import EXERCISES as OF_NOTEBOOK_06
from workshop_lib.exercises.nb07 import EXERCISES as OF_NOTEBOOK_07
from workshop_lib.exercises.nb08 import EXERCISES as OF_NOTEBOOK_08
from workshop_lib.exercises.nb09 import EXERCISES as OF_NOTEBOOK_09
from workshop_lib.exercises.nb10 import EXERCISES as OF_NOTEBOOK_10
from workshop_lib.exercises.nb11 import EXERCISES as OF_NOTEBOOK_11
from workshop_lib.exercises.nb12 import EXERCISES as OF_NOTEBOOK_12

EXERCISES: tuple[Exercise, ...] = (
    *OF_NOTEBOOK_02,
    *OF_NOTEBOOK_03,
    *OF_NOTEBOOK_04,
    *OF_NOTEBOOK_05,
    *OF_NOTEBOOK_06,
    *OF_NOTEBOOK_07,
    *OF_NOTEBOOK_08,
    *OF_NOTEBOOK_09,
    *OF_NOTEBOOK_10,
    *OF_NOTEBOOK_11,
    *OF_NOTEBOOK_12,
)
"""All exercises, in the order of the notebooks; each notebook's are in a module of their own."""


def exercise(exercise_id: str) -> Exercise:
    """The exercise with this id: `.check(your_answer)`, `.hint()` or `.solution()`.

    Raises:
        WorkshopError: there is none; the text lists those that exist.

    """
    for known in EXERCISES:
        if known.id == exercise_id:
            return known
    listed = "".join(f"\n  {known.id}  {known.title}" for known in EXERCISES)
    raise WorkshopError(f"There is no exercise {exercise_id!r}. There are:{listed}")
