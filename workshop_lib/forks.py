"""What an object has to make anew in a forked child: its locks, and what other threads were doing.

A lock that another thread held at the moment of the fork stays locked in the child for ever.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

_methods: list[weakref.WeakMethod[Callable[[], Any]]] = []


def call_in_child(method: Callable[[], Any]) -> None:
    """Have a bound method called in every child that this process forks, while its object lives."""
    if not _methods:
        os.register_at_fork(after_in_child=_call_all)
    _methods[:] = [known for known in _methods if known() is not None]
    _methods.append(weakref.WeakMethod(method))


def _call_all() -> None:
    for known in _methods:
        if method := known():
            method()
