"""Checks that refuse a handler that cannot work when it is given, before the first message arrives.

A handler that works is never refused. The code of a Python function decides, since its signature may belong to another
function, as with ``functools.wraps``. A handler with unknown parameters is accepted.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from wshub.errors import MisuseError

__all__ = ["EVENTS", "check_class", "check_event_name", "check_function", "check_instance"]

EVENTS: dict[str, tuple[str, ...]] = {
    "on_open": ("connection",),
    "on_message": ("connection", "message"),
    "on_close": ("connection", "code", "reason"),
    "on_error": ("connection", "error"),
    "on_ping": ("connection", "payload"),
    "on_pong": ("connection", "payload"),
    "on_drain": ("connection",),
}
"""The arguments of each handler."""

_OTHER_SPELLINGS = {name.replace("_", ""): name for name in EVENTS}

# Other libraries' names for the same events.
_OTHER_NAMES = {"on_connect": "on_open", "on_disconnect": "on_close", "on_receive": "on_message"}

# From Python 3.14 on, the place of an argument that the caller of a partial function passes.
_PLACEHOLDER = getattr(functools, "Placeholder", object())

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def check_event_name(name: str) -> None:
    """Raise ``MisuseError`` for a name that is not an event."""
    if name in EVENTS:
        return
    meant = _OTHER_NAMES.get(name) or _OTHER_SPELLINGS.get(name.replace("_", "").lower())
    close = [meant] if meant else difflib.get_close_matches(name, EVENTS, 1)
    hint = f" Do you mean {close[0]}?" if close else ""
    raise MisuseError(f"there is no event {name!r}: the events are {', '.join(EVENTS)}.{hint}")


def check_function(name: str, function: object, arguments: tuple[str, ...]) -> None:
    """Raise ``MisuseError`` for a function that does not take these arguments, or whose call would do nothing."""
    if not callable(function):
        raise MisuseError(f"{name} must be a function or a coroutine function, not {function!r}")
    _check_call(name, function, arguments, 0)


def check_class(cls: type, base: type) -> None:
    """Raise ``MisuseError`` for a subclass of ``base``, which is ``EventHandler``, with a method that cannot work."""
    for owner in cls.__mro__:
        # Other subclasses of the base were checked when they were made.
        if owner is cls or not issubclass(owner, base):
            for name, value in vars(owner).items():
                _check_name_in_use(name, value, owner)
                if name in EVENTS and value is not None:
                    _check_method(f"{owner.__qualname__}.{name}", value, EVENTS[name])


def check_instance(handler: Any) -> None:
    """Raise ``MisuseError`` for an ``EventHandler`` with an attribute that cannot work. Does not check its class."""
    for name, value in vars(handler).items():
        if name not in EVENTS:
            _check_name_in_use(name, value, type(handler))
        elif value is not None:
            check_function(name, value, EVENTS[name])


def _check_name_in_use(name: str, value: object, owner: type) -> None:
    """Raise ``MisuseError`` for a function whose name looks like an event."""
    if name[:1] not in "oO" or name in EVENTS or not (callable(value) or isinstance(value, staticmethod | classmethod)):
        return
    if not (name.startswith("on_") or name.replace("_", "").lower() in _OTHER_SPELLINGS):
        return
    try:
        check_event_name(name)
    except MisuseError as error:
        raise MisuseError(
            f"{error} {owner.__qualname__}.{name} would never be called: if you call it yourself, begin its name with "
            "an underscore."
        ) from None


def _check_method(name: str, value: Any, arguments: tuple[str, ...]) -> None:
    """``check_function`` for an attribute of a class."""
    if isinstance(value, FunctionType):
        _check_call(name, value, arguments, 1)
    elif isinstance(value, classmethod):
        _check_call(name, value.__func__, arguments, 1)
    elif isinstance(value, staticmethod):
        check_function(name, value.__func__, arguments)
    elif not hasattr(type(value), "__get__"):
        check_function(name, value, arguments)


def _check_call(name: str, function: Any, arguments: tuple[str, ...], bound: int) -> None:
    """Raise ``MisuseError`` unless a call with ``bound`` bound arguments and then these does something."""
    called, more, keywords = _resolve(function)
    if _is_generator(called):
        raise MisuseError(
            f"{name} must be a function or a coroutine function, and {_name_of(function)} is a generator function: "
            "nothing in it would run. Take the yield out of it."
        )
    if not _takes(called, len(arguments) + bound + more, keywords):
        raise MisuseError(
            f"{name} is called with ({', '.join(arguments)}), and {_name_of(function)}{_signature_of(function)} "
            "cannot be called so: change its parameters"
        )


def _resolve(function: Any) -> tuple[Any, int, frozenset[str]]:
    """Return the function behind methods, partial functions and callable objects, and the arguments bound to it.

    The bound arguments are a number of positional ones and the names of keywords.
    """
    count = 0
    keywords: frozenset[str] = frozenset()
    # By the exact types: a mock is an instance of what it stands for.
    while (kind := type(function)) is not FunctionType:
        if kind is MethodType:
            function = function.__func__
            count += 1
        elif issubclass(kind, functools.partial):
            count += sum(argument is not _PLACEHOLDER for argument in function.args)
            keywords |= function.keywords.keys()
            function = function.func
        elif (
            not issubclass(kind, type) and type(call := inspect.getattr_static(kind, "__call__", None)) is FunctionType
        ):
            function = call
            count += 1
        else:
            break
    return function, count, keywords


def _is_generator(function: Any) -> bool:
    if type(function) is FunctionType:
        return bool(function.__code__.co_flags & _GENERATOR)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _takes(function: Any, count: int, keywords: frozenset[str]) -> bool:
    """Return whether the function takes ``count`` arguments and these keywords; ``True`` if that is unknown."""
    if type(function) is not FunctionType:
        return _signature_takes(function, count, keywords)
    code = function.__code__
    positional = code.co_varnames[: code.co_argcount]
    keyword_only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    if count > len(positional) and not code.co_flags & inspect.CO_VARARGS:
        return False
    without_default = positional[count : len(positional) - len(function.__defaults__ or ())]
    if not keywords and not keyword_only:
        return not without_default
    by_keyword = positional[code.co_posonlyargcount :] + keyword_only
    if not keywords <= frozenset(by_keyword) and not code.co_flags & inspect.CO_VARKEYWORDS:
        return False
    if not keywords.isdisjoint(positional[code.co_posonlyargcount : count]):
        return False
    given = keywords.intersection(by_keyword)
    defaults = (function.__kwdefaults__ or {}).keys()
    return given.issuperset(without_default) and (given | defaults).issuperset(keyword_only)


def _signature_takes(function: Any, count: int, keywords: frozenset[str]) -> bool:
    """``_takes`` for a class, and for a function that is not written in Python."""
    if not (isinstance(function, type) or inspect.isroutine(function)):
        return True
    if hasattr(function, "__wrapped__") or hasattr(function, "__signature__"):
        return True
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return True
    try:
        signature.bind(*[None] * count, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _signature_of(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function, follow_wrapped=False))
    except (TypeError, ValueError):
        return ""
