# cython: language_level=3
"""JSON text (RFC 8259) of values, and values of JSON text.

``orjson`` or ``msgspec`` encodes if one of them is installed. Whether it is makes no difference to the receiver: they
encode only values for which they and the standard library agree. The standard library encodes all others, and decides
what is an error.
"""

from cpython.object cimport PyObject
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

cdef extern from "Python.h":
    # Declared with borrowed references, so that the walk over a value counts none.
    bint PyUnicode_CheckExact(PyObject *value)
    bint PyBool_Check(PyObject *value)
    bint PyLong_CheckExact(PyObject *value)
    bint PyFloat_CheckExact(PyObject *value)
    bint PyDict_CheckExact(PyObject *value)
    bint PyList_CheckExact(PyObject *value)
    bint PyTuple_CheckExact(PyObject *value)
    long long PyLong_AsLongLongAndOverflow(PyObject *value, int *overflow)
    double PyFloat_AS_DOUBLE(PyObject *value)
    bint PyDict_Next(PyObject *value, Py_ssize_t *place, PyObject **key, PyObject **item)
    Py_ssize_t PySequence_Fast_GET_SIZE(PyObject *value)
    PyObject *PySequence_Fast_GET_ITEM(PyObject *value, Py_ssize_t place)

cdef enum:
    # Values that are nested deeper go to the standard library. orjson takes 254 levels.
    MAX_DEPTH = 100


def refuse_constant(name):
    """Raise ValueError for NaN, Infinity and -Infinity, which ``json`` takes and JSON does not have."""
    raise ValueError(f"{name} is no JSON")


# Made once: json.dumps() and json.loads() with arguments make one for each call.
cdef object ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
cdef object DECODER = json.JSONDecoder(parse_constant=refuse_constant)


cdef bint is_plain(PyObject *value, int depth) noexcept:
    """Whether all encoders give the same JSON for a value. Runs no Python code, so the references may be borrowed.

    It consists of exact dicts with exact strs as keys, lists, tuples, strs, bools, None, finite floats, and ints of 64
    bits. For anything else the encoders differ: NaN, other keys, subclasses, long ints, dataclasses.
    """
    cdef int overflow = 0
    cdef Py_ssize_t place = 0
    cdef PyObject *key
    cdef PyObject *item
    if PyUnicode_CheckExact(value) or value == <PyObject *>None or PyBool_Check(value):
        return True
    if PyLong_CheckExact(value):
        PyLong_AsLongLongAndOverflow(value, &overflow)
        return overflow == 0
    if PyFloat_CheckExact(value):
        return isfinite(PyFloat_AS_DOUBLE(value))
    if depth == 0:
        return False
    if PyDict_CheckExact(value):
        while PyDict_Next(value, &place, &key, &item):
            if not PyUnicode_CheckExact(key) or not is_plain(item, depth - 1):
                return False
        return True
    if PyList_CheckExact(value) or PyTuple_CheckExact(value):
        for place in range(PySequence_Fast_GET_SIZE(value)):
            if not is_plain(PySequence_Fast_GET_ITEM(value, place), depth - 1):
                return False
        return True
    return False


cdef object encode_json(object value, str caller):
    """Return a value as compact JSON text: a str, or bytes of UTF-8. Errors name the method ``caller``.

    Raises TypeError for a value that ``json.dumps`` cannot encode. Raises InvalidMessageError for NaN and infinity,
    which JSON does not have, and for a value that contains itself.
    """
    if fast_encoder is not None and is_plain(<PyObject *>value, MAX_DEPTH):
        try:
            return fast_encoder(value)
        except Exception:
            # A lone surrogate: the standard library encodes it, and the text of a message refuses it.
            pass
    try:
        return ENCODER.encode(value)
    except TypeError as error:
        raise TypeError(f"{caller}(value): {error}") from None
    except ValueError as error:
        raise InvalidMessageError(f"{caller}(value): {error}") from None


cdef object decode_json(str text):
    """Return the value of JSON text. Raises UnexpectedMessageError with 1007 for text that is no JSON."""
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError):
        # Also for more digits than Python converts, and for deeper nesting than it follows: the client sent that.
        raise UnexpectedMessageError(1007, "expected JSON") from None


def json_from_value(value, str caller="send_json"):
    """``encode_json``, for Python code."""
    return encode_json(value, caller)


def value_from_json(str text):
    """``decode_json``, for Python code."""
    return decode_json(text)
