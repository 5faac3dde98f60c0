# cython: language_level=3
"""JSON text (RFC 8259) of values, and values of JSON text.

``orjson`` or ``msgspec`` encodes if one of them is installed. Whether it is makes no difference to the receiver: they
encode only values for which they and the standard library agree. The standard library encodes all others, and decides
what is an error.
"""

from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.math cimport isfinite

import json

from wshub.errors import InvalidMessageError, UnexpectedMessageError

try:
    from orjson import dumps as fast_encoder
except ImportError:
    try:
        from msgspec.json import encode as fast_encoder
    except ImportError:
        fast_encoder = None

cdef enum:
    # Values that are nested deeper go to the standard library. orjson takes 254 levels.
    MAX_DEPTH = 100


cdef bint is_plain(object value, int depth) except -1:
    """Whether all encoders give the same JSON for a value.

    It consists of exact dicts with exact strs as keys, lists, tuples, strs, bools, None, finite floats, and ints of 64
    bits. For anything else the encoders differ: NaN, other keys, subclasses, long ints, dataclasses.
    """
    cdef int overflow = 0
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return True
    if kind is int:
        PyLong_AsLongLongAndOverflow(value, &overflow)
        return overflow == 0
    if kind is float:
        return isfinite(<double>value)
    if depth == 0:
        return False
    if kind is dict:
        for key, item in (<dict>value).items():
            if type(key) is not str or not is_plain(item, depth - 1):
                return False
        return True
    if kind is list:
        for item in <list>value:
            if not is_plain(item, depth - 1):
                return False
        return True
    if kind is tuple:
        for item in <tuple>value:
            if not is_plain(item, depth - 1):
                return False
        return True
    return False


cdef object encode_json(object value, str caller):
    """Return a value as compact JSON text: a str, or bytes of UTF-8. Errors name the method ``caller``.

    Raises TypeError for a value that ``json.dumps`` cannot encode. Raises InvalidMessageError for NaN and infinity,
    which JSON does not have, and for a value that contains itself.
    """
    if fast_encoder is not None and is_plain(value, MAX_DEPTH):
        try:
            return fast_encoder(value)
        except Exception:
            # A lone surrogate: the standard library encodes it, and the text of a message refuses it.
            pass
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except TypeError as error:
        raise TypeError(f"{caller}(value): {error}") from None
    except ValueError as error:
        raise InvalidMessageError(f"{caller}(value): {error}") from None


cdef object decode_json(str text):
    """Return the value of JSON text. Raises UnexpectedMessageError with 1007 for text that is no JSON."""
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        # Also for more digits than Python converts, and for deeper nesting than it follows: the client sent that.
        raise UnexpectedMessageError(1007, "expected JSON") from None


def refuse_constant(name):
    """Raise ValueError for NaN, Infinity and -Infinity, which ``json`` takes and JSON does not have."""
    raise ValueError(f"{name} is no JSON")


def json_from_value(value, str caller="send_json"):
    """``encode_json``, for Python code."""
    return encode_json(value, caller)


def value_from_json(str text):
    """``decode_json``, for Python code."""
    return decode_json(text)
