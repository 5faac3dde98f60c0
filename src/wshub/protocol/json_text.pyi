"""JSON text (RFC 8259) of values, and values of JSON text.

``orjson`` or ``msgspec`` encodes if one of them is installed. Whether it is makes no difference to the receiver: they
encode only values for which they and the standard library agree. The standard library encodes all others, and decides
what is an error.
"""

from collections.abc import Callable
from typing import Any

fast_encoder: Callable[[Any], bytes] | None

def json_from_value(value: Any, caller: str = "send_json") -> str | bytes:
    """``encode_json``, for Python code."""

def value_from_json(text: str) -> Any:
    """``decode_json``, for Python code."""

def refuse_constant(name: str) -> Any:
    """Raise ValueError for NaN, Infinity and -Infinity, which ``json`` takes and JSON does not have."""
