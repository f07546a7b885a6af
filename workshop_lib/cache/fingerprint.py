"""What identifies a function: its name, its code, and the unchanging data that it uses.

Two functions have the same fingerprint only if all of these are the same:

- module, qualified name, bytecode, constants, names;
- defaults, and the variables from around the function that it reads, as far as they hold data that
  cannot change: numbers, texts, dates, tuples and frozensets of these;
- functions among these variables likewise; partials and memoized functions by what they wrap;
- modules, functions and classes of Python and of installed packages by their name.

A function that uses anything else (an object, a list, a class of one's own), or that assigns a
variable from around it, is like no other: what it will do cannot be told from outside.
"""

from __future__ import annotations

import dis
import os
import re
import secrets
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from workshop_lib.cache.codec import IMMUTABLE, Uncacheable, canonical

_LRU_CACHED = type(lru_cache(lambda: None))
_PACKAGES = frozenset({"site-packages", "dist-packages"})


class Fingerprint:
    """A digest of a function, which follows what its variables are bound to.

    Args:
        function: whose.
        known: an object that the function may use, and that is told apart elsewhere.
        wrapper: a class whose objects count as the function that is their `__wrapped__`.

    """

    def __init__(self, function: Callable[..., Any], known: object, wrapper: type) -> None:
        self._function, self._known = function, known
        self._wrappers: Any = (_LRU_CACHED, wrapper)
        self._salt = secrets.token_bytes(16)
        # All that were ever met stay alive: another object may not get the `id` of one of them.
        self._strangers: dict[int, object] = {}
        self._latest: tuple[bytes, list[tuple[Callable[[], object], object]]] | None = None

    def digest(self) -> bytes:
        """The same for the same function, also in another process of the same version of Python."""
        latest = self._latest
        if latest is None or any(look() is not value for look, value in latest[1]):
            bound: list[tuple[Callable[[], object], object]] = []
            parts = self._of(self._function, bound, {})
            # The repr of nested tuples of texts, bytes and numbers shows their bounds.
            digest = blake2b(repr(parts).encode(), digest_size=16).digest()
            latest = self._latest = digest, bound
        return latest[0]

    def _of(self, value: Any, bound: list[Any], met: dict[int, int]) -> object:
        """What stands for a value: nested tuples of texts, bytes and numbers."""
        kind = type(value)
        if kind in IMMUTABLE:
            with suppress(Uncacheable):
                return kind.__name__, canonical(value)
        elif value is self._known:
            return ("known",)
        elif kind is tuple:
            return "tuple", tuple(self._of(part, bound, met) for part in value)
        elif kind is frozenset:
            return "frozenset", tuple(sorted(repr(self._of(part, bound, met)) for part in value))
        elif isinstance(value, partial):
            parts = (value.func, value.args, *value.keywords.items())
            return "partial", self._of(parts, bound, met)
        elif isinstance(value, self._wrappers):
            return self._of(value.__wrapped__, bound, met)
        elif kind is types.FunctionType:
            if id(value) in met:
                return "again", met[id(value)]
            met[id(value)] = len(met)
            return self._of_function(value, bound, met)
        elif kind is types.CodeType:
            # Neither its file nor its lines are part of it.
            sizes = (value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount)
            names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
            does = (value.co_code, value.co_exceptiontable, value.co_flags)
            return does, sizes, names, self._of(value.co_consts, bound, met)
        elif kind is types.ModuleType and _is_installed(value.__name__):
            return "module", value.__name__
        elif isinstance(value, types.BuiltinFunctionType | type):
            name = value.__qualname__
            if _is_installed(value.__module__) and "<locals>" not in name:
                return kind.__name__, value.__module__, name
        return self._stranger(value)

    def _of_function(self, function: Any, bound: list[Any], met: dict[int, int]) -> object:
        reads, assigns = _names(function.__code__)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        looks = {name: partial(_content, cell) for name, cell in cells}
        if not _is_installed(function.__module__):  # a builtin is known by its name
            looks |= {name: partial(function.__globals__.get, name) for name in reads}
        values = {name: look() for name, look in looks.items() if name not in assigns}
        bound += [(looks[name], value) for name, value in values.items()]
        is_plain = not assigns & looks.keys() and vars(function).keys() <= {"__wrapped__"}
        named = (function.__module__, function.__qualname__, *looks)
        used = (function.__code__, function.__defaults__, *(function.__kwdefaults__ or {}).items())
        more = () if is_plain else self._stranger(function)
        return named, self._of((*used, *values.values()), bound, met), more

    def _stranger(self, value: object) -> object:
        self._strangers[id(value)] = value
        return self._salt, os.getpid(), id(value)


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet, or no longer
        return None


@lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[list[str], frozenset[str]]:
    """The globals that a code object reads, and the variables of others that it assigns."""
    steps = list(dis.get_instructions(code))
    reads = {s.argval for s in steps if re.fullmatch(r"LOAD_(\w+_)?(NAME|GLOBALS?)", s.opname)}
    assigns = {s.argval for s in steps if re.fullmatch(r"(STORE|DELETE)_(GLOBAL|DEREF)", s.opname)}
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            reads |= set(_names(inner)[0])
            assigns |= _names(inner)[1]
    return sorted(reads), frozenset(assigns)


@lru_cache(maxsize=1024)
def _is_installed(module: str | None) -> bool:
    """Whether a module is of Python, of an installed package or of the workshop."""
    top = str(module).partition(".")[0]
    if top == "__main__":  # the file of a notebook's is a launcher's
        return False
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(str(module)), "__file__", None)
    return file is not None and not _PACKAGES.isdisjoint(Path(file).parts)
