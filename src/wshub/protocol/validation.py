"""The checks that every configuration makes of its values."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from wshub.errors import ConfigurationError

__all__ = [
    "check_bool",
    "check_choice",
    "check_fields",
    "check_integer",
    "check_port",
    "check_str",
    "check_strings",
    "exact_str",
]


def check_integer(name: str, value: Any, smallest: int, largest: int) -> int:
    """Return an integer from ``smallest`` to ``largest`` as an ``int``; raise ``ConfigurationError`` for anything else.

    A ``bool`` is refused. Any other object with ``__index__`` counts as an integer, such as NumPy's.
    """
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        number = operator.index(value)
        if smallest <= number <= largest:
            return number
    raise ConfigurationError(f"{name} must be an integer from {smallest} to {largest}, not {value!r}")


def check_port(value: Any) -> int:
    """Return the number of a port; raise ``ConfigurationError`` for anything else. With 0 the system chooses one."""
    return check_integer("port", value, 0, 65535)


def check_bool(name: str, value: object) -> None:
    """Raise ``ConfigurationError`` for anything but ``True`` and ``False``."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}")


def check_str(name: str, value: object) -> str:
    """Return a plain ``str``, also for a subclass; raise ``ConfigurationError`` for anything else."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} must be a str, not {value!r}")
    return str.__str__(value)


def exact_str(rule: str, value: object) -> str:
    """Return a plain ``str``, also for a subclass; raise ``TypeError`` for anything else.

    ``rule`` is the first part of the message, such as ``"the name of a room must be a str"``.
    """
    if not isinstance(value, str):
        raise TypeError(f"{rule}, not {type(value).__name__}")
    return str.__str__(value)


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return the choice that equals the value; raise ``ConfigurationError`` if there is none."""
    if isinstance(value, str):
        chosen = str.__str__(value)
        if chosen in choices:
            return chosen
    *others, last = (f'"{choice}"' for choice in choices)
    raise ConfigurationError(f"{name} must be {', '.join(others)} or {last}, not {value!r}")


def check_strings(name: str, values: Any) -> tuple[str, ...]:
    """Return an iterable of ``str`` as a tuple; raise ``ConfigurationError`` for anything else.

    A single ``str`` is refused: it would count as its characters.
    """
    if isinstance(values, str | bytes):
        raise ConfigurationError(f"{name} must be a sequence of strings, such as [{values!r}], not one string")
    if not isinstance(values, Iterable):
        raise ConfigurationError(f"{name} must be a sequence of strings, not {values!r}")
    return tuple(check_str(f"each of {name}", value) for value in values)


def check_fields(name: str, fields: Any) -> Iterable[tuple[str | bytes, str | bytes]]:
    """Return an iterable of header fields; raise ``ConfigurationError`` for a mapping, a ``str`` or a single object.

    The elements of these are not pairs of a name and a value.
    """
    if isinstance(fields, list | tuple):
        # Nearly always. The other checks take longer.
        return fields
    if isinstance(fields, Mapping | str | bytes) or not isinstance(fields, Iterable):
        hint = f": pass {name}.items()" if isinstance(fields, Mapping) else ""
        raise ConfigurationError(f"{name} must be pairs of a name and a value, not {type(fields).__name__}{hint}")
    return fields
