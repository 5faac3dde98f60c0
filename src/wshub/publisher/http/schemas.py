"""Checks values by the JSON Schemas of the OpenAPI document, so that the document is what holds."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = ["Schema", "find_mistake"]

Schema: TypeAlias = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
}


def find_mistake(schema: Schema, value: Any, place: str = "the body") -> str | None:
    """Return what is wrong with a value; None if it is as the schema says.

    Args:
        schema: with the keywords of JSON Schema that this function knows.
        value: from JSON.
        place: where the value is, for the message.
    """
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, _TYPES[kind]) or (kind == "integer" and isinstance(value, bool))):
        return f"{place} must be of the type {kind}"
    choices = schema.get("enum")
    if choices is not None and value not in choices:
        return f"{place} must be one of {', '.join(choices)}"
    if kind == "integer" and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{place} must be from {schema['minimum']} to {schema['maximum']}"
    if kind == "string" and not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return f"{place} must have {_range(schema, 'minLength', 'maxLength')} characters"
    if kind == "array":
        return _find_in_array(schema, value, place)
    return _find_in_object(schema, value, place) if kind == "object" else None


def _find_in_array(schema: Schema, value: list[Any], place: str) -> str | None:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        return f"{place} must have {_range(schema, 'minItems', 'maxItems')} elements"
    found = (find_mistake(schema["items"], item, f"{place}[{index}]") for index, item in enumerate(value))
    return next((mistake for mistake in found if mistake is not None), None)


def _find_in_object(schema: Schema, value: dict[str, Any], place: str) -> str | None:
    properties = schema["properties"]
    for name in value:
        if name not in properties:
            return f"{place} has a field {name[:50]!r}, and may have {', '.join(properties)}"
    for name in schema.get("required", ()):
        if name not in value:
            return f"{place} needs the field {name!r}"
    alternatives = [name for choice in schema.get("oneOf", ()) for name in choice["required"]]
    if alternatives and sum(name in value for name in alternatives) != 1:
        return f"{place} needs one of the fields {', '.join(alternatives)}, and no more than one"
    for name, item in value.items():
        mistake = find_mistake(
            properties[name], item, f"the field {name!r}" if place == "the body" else f"{place}.{name}"
        )
        if mistake is not None:
            return mistake
    return None


def _range(schema: Schema, smallest: str, largest: str) -> str:
    if largest not in schema:
        return f"at least {schema[smallest]}"
    return f"{schema.get(smallest, 0)} to {schema[largest]}"
