"""Arguments of the public functions against their own annotations: a wrong type is a UsageError of one line, not whatever
numpy or an engine makes of it further down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cache, wraps
from inspect import signature
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

Test = Callable[[object], bool]


def checked(*left_out: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check a function's arguments against its annotations at every call, except those ``left_out``, which it checks itself.

    Numbers of numpy are numbers, a bool is none. Of a container only the kind is looked at, never what it holds. Costs
    about a microsecond a call. The function raises UsageError that names the argument, what it may be, and what it was."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = tuple(signature(function).parameters)
        first = next((i for i, name in enumerate(names) if name in function.__annotations__ and name not in left_out), 0)

        @cache  # at the first call: annotations name things that are defined later in a module
        def tests() -> dict[str, tuple[frozenset[type], Test, Any]]:
            hints = get_type_hints(function)
            return {name: _test(hints[name]) for name in names if name in hints and name not in left_out}

        def check(name: str, value: object) -> None:
            if name in (table := tests()):
                usual, fits, hint = table[name]
                if type(value) not in usual and not fits(value):
                    raise _wrong(name, hint, value)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for i in range(first, min(len(args), len(names))):
                check(names[i], args[i])
            for name in kwargs:
                check(name, kwargs[name])
            return function(*args, **kwargs)

        return call

    return decorate


def _wrong(name: str, hint: Any, value: object) -> UsageError:
    kinds = list(dict.fromkeys(_words(part) for part in _parts(hint) if part is not NoneType))
    expected = f"{', '.join(kinds[:-1])} or {kinds[-1]}" if len(kinds) > 1 else kinds[0]
    shown = " ".join(repr(value).split())
    return UsageError(
        f"{name} must be {expected}; got {type(value).__name__} {shown[:77] + '...' if len(shown) > 80 else shown}"
    )


def _parts(hint: Any) -> tuple[Any, ...]:
    """The members of a union; of anything else, itself."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(part for member in get_args(hint) for part in _parts(member))
    return (hint,)


def _origin(part: Any) -> Any:
    """The class behind a hint, behind aliases too: numpy's ``NDArray`` is one from 2.5 on (PEP 695)."""
    origin = get_origin(part) or part
    while hasattr(origin, "__value__"):
        origin = get_origin(origin.__value__) or origin.__value__
    return origin


def _test(hint: Any) -> tuple[frozenset[type], Test, Any]:
    """(types that need no further look, whether a value of another type fits, the annotation)."""
    classes: list[type] = []
    tests: list[Test] = []
    values: tuple[object, ...] = ()
    for part in _parts(hint):
        origin = _origin(part)
        if origin is Literal:
            values += get_args(part)
        elif origin in _TESTS:
            tests.append(_TESTS[origin])
        else:
            classes.append(origin)
    kinds = tuple(classes)
    usual = frozenset(kind for part in _parts(hint) for kind in _USUAL.get(_origin(part), kinds))

    def fits(value: object) -> bool:
        return isinstance(value, kinds) or (isinstance(value, str) and value in values) or any(t(value) for t in tests)

    return usual, fits, hint


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_several(value: object) -> bool:
    try:
        iter(value)  # type: ignore[call-overload]  # isinstance knows nothing of classes that have only __getitem__
    except Exception:  # a closed file or memory of several dimensions raises errors of its own
        return False
    return True


_TESTS: dict[Any, Test] = {
    Any: lambda value: True,
    object: lambda value: True,
    int: _is_whole,
    float: _is_number,
    Callable: callable,
    Iterable: _is_several,
    tuple: _is_several,
}
_USUAL: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), tuple: (tuple, list)}
_WORDS: dict[Any, str] = {
    str: "a text",
    bytes: "bytes",
    Callable: "a function",
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    os.PathLike: "a path",
    Iterable: "several, in a list or another iterable",
}


def _words(part: Any) -> str:
    origin = _origin(part)
    if origin is Literal:
        return " or ".join(map(repr, get_args(part)))
    if origin is tuple and get_args(part)[-1:] != (...,):
        return f"{len(get_args(part))} numbers"
    return _WORDS.get(origin) or f"a {getattr(origin, '__name__', str(origin))}"
