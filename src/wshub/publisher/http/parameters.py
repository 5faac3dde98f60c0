"""The parameters of a query string, checked by their schemas in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.datastructures import QueryParams

from wshub.publisher.http.answers import ApiError
from wshub.publisher.http.schemas import Schema, find_mistake

__all__ = ["boolean", "integer", "parameter", "read_parameters", "text"]

# Digits of the longest number. Python takes long to convert very many.
MOST_DIGITS = 19

BOOLEANS = {"true": True, "false": False}


def parameter(name: str, description: str, schema: Schema, *, required: bool = False) -> Schema:
    """Return a parameter of the query string, as an OpenAPI document has it."""
    return {"name": name, "in": "query", "required": required, "description": description, "schema": schema}


def text(most: int) -> Schema:
    """Return the schema of a text of at most so many characters."""
    return {"type": "string", "maxLength": most}


def integer(least: int, most: int, default: int | None = None) -> Schema:
    """Return the schema of a number."""
    schema: Schema = {"type": "integer", "minimum": least, "maximum": most}
    return schema if default is None else {**schema, "default": default}


def boolean(default: bool) -> Schema:
    """Return the schema of ``true`` or ``false``."""
    return {"type": "boolean", "default": default}


def read_parameters(known: Iterable[Schema], given: QueryParams) -> dict[str, Any]:
    """Return the values of the parameters that were given, and the defaults of others.

    Args:
        known: the parameters, as ``parameter()`` makes them.
        given: the query string.

    Raises:
        ApiError: a parameter is missing, unknown, given twice, or not as its schema says.
    """
    schemas = {each["name"]: each["schema"] for each in known}
    for name in given:
        if name not in schemas:
            may_have = ", ".join(schemas) or "no parameter"
            raise ApiError("invalid_request", f"there is a parameter {name[:50]!r}: the request may have {may_have}")
    values: dict[str, Any] = {}
    for each in known:
        name, schema, texts = each["name"], each["schema"], given.getlist(each["name"])
        if not texts:
            if each["required"]:
                raise ApiError("invalid_request", f"the request needs the parameter {name!r}: ?{name}=...")
            if "default" in schema:
                values[name] = schema["default"]
            continue
        if schema["type"] == "array":
            values[name] = texts
        elif len(texts) > 1:
            raise ApiError("invalid_request", f"give the parameter {name!r} once")
        else:
            values[name] = _value_of(schema, texts[0])
        mistake = find_mistake(schema, values[name], f"the parameter {name!r}")
        if mistake is not None:
            raise ApiError("invalid_request", mistake)
    return values


def _value_of(schema: Schema, given: str) -> Any:
    """Return what a text stands for. A text that stands for nothing stays as it is, and the schema refuses it."""
    if schema["type"] == "integer":
        digits = given.removeprefix("-")
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= MOST_DIGITS
        return int(given) if is_number else given
    return BOOLEANS.get(given, given) if schema["type"] == "boolean" else given
