"""The OpenAPI document of the HTTP API: it is valid, and it says what the API does."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import jsonschema
import openapi_spec_validator
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.publisher.test_http_api import TOKEN, client_of
from wshub import HistoryConfig, Hub
from wshub.publisher.http import HttpApi
from wshub.publisher.http.answers import ERROR_STATUSES
from wshub.publisher.http.commands import COMMANDS
from wshub.publisher.http.openapi import document
from wshub.publisher.http.queries import QUERIES
from wshub.publisher.http.schemas import find_mistake

DOCUMENT = document("1.0", "", 1 << 20, 5)


def test_the_document_is_valid() -> None:
    openapi_spec_validator.validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1.")


async def test_the_document_needs_no_token_and_lists_every_path() -> None:
    api_of_hub = HttpApi(Hub(broker="none"), tokens=[TOKEN])
    async with client_of(api_of_hub, headers={}) as api:
        served = (await api.get("/openapi.json")).json()
    openapi_spec_validator.validate(served)
    paths = {(route.path, method) for route in api_of_hub._application.routes for method in route.methods}  # type: ignore[attr-defined]
    listed = {(path, method.upper()) for path, methods in served["paths"].items() for method in methods}
    assert paths - {("/openapi.json", "GET")} - {(path, "HEAD") for path, _ in paths} == listed


def test_every_error_is_described() -> None:
    assert set(DOCUMENT["components"]["responses"]) == set(ERROR_STATUSES)


def resolved(value: Any) -> Any:
    """Return a part of the document with its references replaced."""
    if isinstance(value, list):
        return [resolved(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        found: Any = DOCUMENT
        for name in value["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        return resolved(found)
    return {name: resolved(item) for name, item in value.items()}


def check_answer(path: str, method: str, response: httpx.Response) -> None:
    """Compare an answer with the schema that the document has for its status."""
    described = resolved(DOCUMENT["paths"][path][method]["responses"][str(response.status_code)])
    jsonschema.validate(response.json(), described["content"]["application/json"]["schema"])


async def test_answers_are_as_the_document_says() -> None:
    hub = Hub(broker="none")
    hub.configure_room("kept", history=HistoryConfig(), presence=True)
    bodies: dict[str, list[Any]] = {
        "publish": [
            {"room": "a", "text": "x"},
            {"room": "kept", "text": "x", "idempotency_key": "1", "publisher": "ann"},
            {"room": "a", "text": "x", "idempotency_key": "1"},
            {},
        ],
        "publish_to_all": [{"json": None}, 7],
        "publish_to_rooms": [
            {"rooms": ["a", "kept"], "text": "x"},
            {"rooms": ["a", "kept"], "base64": "AA==", "idempotency_key": "2"},
            {"rooms": [], "text": "x"},
        ],
        "send_to_user": [{"user": "ann", "base64": ""}, {"user": "", "text": ""}],
        "disconnect_user": [{"user": "ann"}, {"user": "ann", "code": 1006}],
        "batch": [{"commands": [{"command": "disconnect_user", "user": "ann"}]}, {"commands": [{}]}, {}],
    }
    assert set(bodies) == {*COMMANDS, "batch"}
    async with hub, client_of(HttpApi(hub, tokens=[TOKEN], max_body=500)) as api:
        for name, values in bodies.items():
            statuses = []
            for value in values:
                response = await api.post(f"/{name}", json=value)
                check_answer(f"/{name}", "post", response)
                statuses.append(response.status_code)
            assert statuses[0] == 200
            assert statuses[-1] == 400
            check_answer(f"/{name}", "post", await api.post(f"/{name}", headers={"authorization": "Bearer x"}))
            check_answer(f"/{name}", "post", await api.post(f"/{name}", content="x" * 501))
        for path in (
            *("/nodes", "/room_counts?room=a", "/room_counts", "/health"),
            *("/history?room=kept", "/history?room=kept&limit=1&reverse=true", "/history?room=kept&since=9&epoch=x"),
            *("/history?room=a", "/history?room=kept&since=1", "/presence?room=kept", "/presence?room=a", "/presence"),
            *("/presence?room=kept&cursor=x", "/presence_counts?room=kept", "/presence_counts?room=a"),
        ):
            check_answer(path.partition("?")[0], "get", await api.get(path))


@pytest.mark.parametrize("name", QUERIES)
async def test_the_default_and_the_bounds_of_each_parameter_hold(name: str) -> None:
    described = DOCUMENT["paths"][f"/{name}"]["get"]["parameters"]
    hub = Hub(broker="none")
    hub.configure_room("kept", history=HistoryConfig(), presence=True)
    wrong: dict[str, list[str]] = {
        "integer": ["x", "", "1.5", "-1", "9" * 19, "9" * 5000, "\u0661"],
        "boolean": ["1", "True", ""],
        "string": ["x" * 201],
    }
    async with hub, client_of(HttpApi(hub, tokens=[TOKEN])) as api:
        good = {each["name"]: "kept" for each in described if each["required"]}
        assert (await api.get(f"/{name}", params=good)).status_code == 200
        for each in described:
            schema = each["schema"]
            for given in wrong.get(schema["type"], []) if "maxLength" in schema or schema["type"] != "string" else []:
                response = await api.get(f"/{name}", params={**good, each["name"]: given})
                assert response.status_code == 400, (each, given)
                assert each["name"] in response.json()["error"]["message"]
            if schema["type"] != "array":
                twice = [*good.items(), (each["name"], "1"), (each["name"], "1")]
                assert (await api.get(f"/{name}", params=twice)).status_code == 400
            if each["required"]:
                without = {field: value for field, value in good.items() if field != each["name"]}
                assert (await api.get(f"/{name}", params=without)).status_code == 400
        response = await api.get(f"/{name}", params={**good, "limti": "5"})
        assert response.status_code == 400
        assert "'limti'" in response.json()["error"]["message"]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 6000) | st.sampled_from(["", "a", "ann", "close", "aGk=", "x" * 124]),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=7,
)
names = st.sampled_from(
    [
        *(
            "room",
            "rooms",
            "user",
            "text",
            "json",
            "base64",
            "key",
            "slow_consumer",
            "compress",
            "code",
            "reason",
            "idempotency_key",
            "publisher",
            "other",
        )
    ]
)


@pytest.mark.parametrize("name", COMMANDS)
@settings(max_examples=60)
@given(body=st.dictionaries(names, values, max_size=4) | values)
def test_the_api_takes_what_the_document_allows(name: str, body: Any) -> None:
    schema = DOCUMENT["paths"][f"/{name}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    is_valid = jsonschema.Draft202012Validator(schema).is_valid(body)
    assert (find_mistake(schema, body) is None) == is_valid, body


@pytest.mark.parametrize("name", COMMANDS)
def test_a_valid_body_of_each_command_is_taken(name: str) -> None:
    """The property above draws few valid bodies of commands with several required fields."""
    required: dict[str, Any] = {"room": "a", "rooms": ["a", "b"], "user": "ann"}
    schema = COMMANDS[name].schema(5)
    body = {field: required[field] for field in schema.get("required", ())}
    if COMMANDS[name].has_message:
        body["text"] = "x"
    assert find_mistake(schema, body) is None
    jsonschema.validate(body, schema)
    for field in schema.get("required", ()):
        assert find_mistake(schema, {key: value for key, value in body.items() if key != field}) is not None
    json.dumps(schema)


async def test_the_batch_of_the_document_is_the_batch_of_the_api() -> None:
    schema = DOCUMENT["paths"]["/batch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator(schema)
    hub = Hub(broker="none")
    async with hub, client_of(HttpApi(hub, tokens=[TOKEN], max_commands=5)) as api:
        for item in (
            {"command": "publish", "room": "a", "text": "x"},
            {"command": "publish", "room": "a"},
            {"command": "publish"},
            {"command": "nothing"},
            {"command": "disconnect_user", "user": "ann"},
            {"command": "disconnect_user", "user": "ann", "text": "x"},
            {"room": "a", "text": "x"},
            7,
        ):
            response = await api.post("/batch", json={"commands": [item]})
            assert (response.status_code == 200) == validator.is_valid({"commands": [item]}), item
    await asyncio.sleep(0)
