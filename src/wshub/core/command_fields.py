"""The fields of the commands between nodes: checks of those that arrive, and of what the application gives for them."""

from __future__ import annotations

from typing import Any

from wshub.protocol.validation import exact_str

__all__ = ["check_name", "check_reason", "integer_in", "mapping_in", "number_in", "text_in"]

LARGEST = 2**53
"""Numbers in JSON are exact up to this one."""


def check_name(what: str, name: object) -> str:
    """Return the name of a ``room`` or a ``user`` as a plain str. Raises ``TypeError`` if it is no str."""
    return exact_str(f"the name of a {what} must be a str", name)


def check_reason(reason: object) -> str:
    """Return the reason of a close as a plain str. Raises ``TypeError`` if it is no str."""
    return exact_str("the reason must be a str", reason)


# Fields of a command that has arrived. Each function raises ValueError for a missing field without a default, and for
# a value of another type.


def text_in(fields: dict[str, Any], name: str, default: str | None = None) -> str:
    """Return a str. It may have lone surrogates, as the names of rooms and users."""
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"the field {name} is no str")
    return value


def integer_in(fields: dict[str, Any], name: str, default: int | None = None) -> int:
    """Return an integer."""
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST:
        raise ValueError(f"the field {name} is no integer")
    return value


def number_in(fields: dict[str, Any], name: str, default: float | None = None) -> float:
    """Return a finite number."""
    value = fields.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
        raise ValueError(f"the field {name} is no number")
    return float(value)


def mapping_in(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object of JSON."""
    value = fields.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"the field {name} is no object")
    return value


def list_in(fields: dict[str, Any], name: str) -> list[Any]:
    """Return a list, which is empty if the field is missing."""
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"the field {name} is no list")
    return value
