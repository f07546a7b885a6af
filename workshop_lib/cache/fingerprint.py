"""What tells a function from any other: what it does and what it uses, not where it is written."""

from __future__ import annotations

import dis
import pickle
import secrets
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import Field, dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from workshop_lib.cache.codec import Uncacheable, canonical

LruCached = type(lru_cache(lambda: None))
_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes, type(Ellipsis)})
_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_STORES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_DEREF", "DELETE_DEREF"})
_PACKAGES = frozenset({"site-packages", "dist-packages"})


class Fingerprint:
    """A digest of a function, asked for anew at each call.

    It covers the function's code, its defaults, and what it refers to in enclosing functions and as
    globals, with the functions and classes of one's own among these likewise; modules and what is
    installed count by their names. What a variable is bound to counts as it was when it was first
    seen bound to that: what changes inside (a list that grows) makes no other function, and neither
    does what the function itself assigns. What can be neither encoded nor pickled, such as a
    client or an open file, is told apart from all others and has no digest in another process.

    Args:
        function: whose.
        unwrap: what to look at in the place of a value.

    """

    def __init__(
        self, function: Callable[..., Any], unwrap: Callable[[object], object] = lambda value: value
    ) -> None:
        self._function = function
        self._walk = _Walk(function, unwrap)

    def digest(self) -> bytes:
        """The same for the same function in every process of the same version of Python."""
        walk = self._walk
        if walk.outdated:
            walk = self._walk = _Walk(self._function, walk.unwrap, walk)
        return walk.digest


@dataclass(frozen=True, slots=True)
class _Seen:
    """An object as it was when it was first seen: what it is, and its state or its parts."""

    value: object
    label: str
    state: bytes = b""
    parts: tuple[object, ...] = ()


class _Walk:
    """One walk through all that a function refers to.

    Args:
        function: where it begins.
        unwrap: what to look at in the place of a value.
        before: the walk before this one, which may have seen some of it.

    """

    def __init__(
        self,
        function: object,
        unwrap: Callable[[object], object],
        before: _Walk | None = None,
    ) -> None:
        self.unwrap = unwrap
        self._before = before
        self._seen: dict[int, _Seen] = {}
        self._met: dict[int, int] = {}
        self._first: dict[tuple[int, object], object] = {}
        self._bound: list[tuple[Callable[[], object], object]] = []
        self.digest = _digest(self._of(function))
        self._before = None

    @property
    def outdated(self) -> bool:
        """Whether a variable has been bound to something else."""
        return any(look() is not value for look, value in self._bound)

    def _of(self, value: object) -> object:
        """What stands for a value: nested tuples of text, bytes and numbers."""
        kind = type(value)
        if kind is int:
            return "int", hex(value)  # type: ignore[arg-type]
        if kind in _SCALARS:
            return kind.__name__, repr(value)
        value = self.unwrap(value)
        if id(value) in self._met:
            return "again", self._met[id(value)]
        self._met[id(value)] = len(self._met)
        if isinstance(value, types.FunctionType):
            return self._of_function(value)
        before = self._before and self._before._seen.get(id(value))
        seen = self._seen[id(value)] = before or _look_at(value)
        return seen.label, seen.state, tuple(map(self._of, seen.parts))

    def _of_function(self, function: types.FunctionType) -> object:
        code = function.__code__
        cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
        looks = {name: partial(_content, cell) for name, cell in cells}
        if not _is_installed(function.__module__):
            looks |= {name: partial(_global, function, name) for name in _names(code)[0]}
        return (
            "function",
            (str(function.__module__), function.__qualname__, _code_digest(code)),
            tuple(map(self._of, function.__defaults__ or ())),
            tuple((name, self._of(v)) for name, v in (function.__kwdefaults__ or {}).items()),
            tuple((name, self._of(v)) for name, v in vars(function).items()),
            tuple((name, self._of_variable(function, name, look)) for name, look in looks.items()),
        )

    def _of_variable(
        self, function: types.FunctionType, name: str, look: Callable[[], object]
    ) -> object:
        value = look()
        if name not in _names(function.__code__)[1]:
            self._bound.append((look, value))
            return self._of(value)
        place = (id(function), name)
        if self._before is not None:
            value = self._before._first.get(place, value)
        self._first[place] = value
        return self._of(value)


def _look_at(value: Any) -> _Seen:
    kind = type(value)
    label = _name(kind)
    if isinstance(value, types.ModuleType):
        return _Seen(value, label, value.__name__.encode())
    if isinstance(value, partial):
        return _Seen(value, label, parts=(value.func, value.args, value.keywords))
    if isinstance(value, types.MethodType):
        return _Seen(value, label, parts=(value.__func__, value.__self__))
    if isinstance(value, types.BuiltinFunctionType):
        return _Seen(value, label, value.__qualname__.encode(), (value.__self__,))
    if isinstance(value, staticmethod | classmethod | LruCached):
        return _Seen(value, label, parts=(value.__wrapped__,))
    if isinstance(value, property):
        return _Seen(value, label, parts=(value.fget, value.fset, value.fdel))
    if isinstance(value, Field):
        return _Seen(value, label, parts=tuple(getattr(value, name) for name in value.__slots__))
    if isinstance(value, type):
        own = (
            () if _is_installed(value.__module__)
            else (kind, *value.__bases__, *_members(value))
        )  # fmt: skip
        return _Seen(value, label, _name(value).encode(), own)
    with suppress(Uncacheable):
        return _Seen(value, label, _digest(canonical(value)))
    if kind in {set, frozenset}:
        return _Seen(value, label, parts=tuple(sorted(value, key=_rank)))
    if kind in {list, tuple}:
        return _Seen(value, label, parts=tuple(value))
    if kind in {dict, types.MappingProxyType}:
        return _Seen(value, label, parts=tuple(part for item in value.items() for part in item))
    if identity := _identity(value):
        return _Seen(value, label, identity, (kind,))
    state, parts = _state(value)
    return _Seen(value, label, state, (kind, *parts))


def _rank(value: object) -> bytes:
    """What sorts a set's values alike in every process."""
    try:
        return canonical(value)
    except Uncacheable:
        return b""


def _identity(value: Any) -> bytes | None:
    """What a workshop, a database or a store say that they are."""
    with suppress(Exception):
        place = getattr(value, "database", value)
        asked = hasattr(place, "query") or hasattr(place, "get_if_changed")
        if asked and isinstance(place.identity, str):
            return f"{place.identity} {getattr(value, 'namespace', '')}".encode()
    return None


def _state(value: object) -> tuple[bytes, list[object]]:
    """What a pickle of the value holds, and what is in it that has to be looked at.

    Something of its own where there is none.
    """
    sink = _Sink()
    pickler = _Pickler(sink, protocol=5)
    try:
        pickler.dump(value)
    except Exception:  # noqa: BLE001 -- whatever a class raises: it cannot be pickled
        return secrets.token_bytes(16), []
    return sink.hash.digest(), pickler.parts


class _Pickler(pickle.Pickler):
    """Leaves out what a pickle would only name, and sets, which it writes in any order."""

    _LEFT_OUT = (types.FunctionType, type, set, frozenset, LruCached)

    def __init__(self, sink: Any, protocol: int) -> None:
        super().__init__(sink, protocol)
        self.parts: list[object] = []

    def persistent_id(self, value: object) -> int | None:
        """A number in the place of such a value."""
        if not isinstance(value, self._LEFT_OUT) and not hasattr(value, "__wrapped__"):
            return None
        self.parts.append(value)
        return len(self.parts)


class _Sink:
    """Takes what is written, however much, and keeps a digest of it."""

    def __init__(self) -> None:
        self.hash = blake2b(digest_size=16)

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return len(data)


def _members(cls: type) -> Iterator[object]:
    """What a class defines, names and values, without what Python adds to each."""
    added = {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "_abc_impl"}
    for name, value in vars(cls).items():
        if name not in added:
            yield from (name, value)


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet, or no longer
        return None


def _global(function: types.FunctionType, name: str) -> object:
    return function.__globals__.get(name)  # a builtin is known by its name


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


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


@lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[list[str], frozenset[str]]:
    """The globals that a code object reads, and the variables of others that it assigns."""
    loads: set[str] = set()
    stores: set[str] = set()
    for part in _nested(code):
        for step in dis.get_instructions(part):
            if step.opname in _LOADS:
                loads.add(step.argval)
            elif step.opname in _STORES:
                stores.add(step.argval)
    return sorted(loads), frozenset(stores)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested(constant)


@lru_cache(maxsize=1024)
def _code_digest(code: types.CodeType) -> bytes:
    """A digest of what the code does; neither its file nor its lines are part of it."""
    return _digest(
        (
            (code.co_code, code.co_exceptiontable),
            (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags),
            (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars),
            tuple(map(_constant, code.co_consts)),
        )
    )


def _constant(value: object) -> object:
    if isinstance(value, types.CodeType):
        return "code", _code_digest(value)
    if isinstance(value, tuple):
        return "tuple", tuple(map(_constant, value))
    if isinstance(value, frozenset):
        return "frozenset", tuple(sorted(repr(_constant(part)) for part in value))
    return type(value).__name__, repr(value)


def _digest(parts: object) -> bytes:
    # The repr of nested tuples of text, bytes and numbers shows their bounds.
    return blake2b(repr(parts).encode(), digest_size=16).digest()
