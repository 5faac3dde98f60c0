"""The codec of graphql-transport-ws, without a connection."""

from __future__ import annotations

import json

import pytest

from wshub.graphql.messages import (
    ClientMessage,
    InvalidClientMessage,
    SubscribePayload,
    encode_message,
    parse_message,
    parse_subscribe,
)


def test_a_message_of_the_server_has_only_the_fields_that_it_needs() -> None:
    assert encode_message("pong") == '{"type":"pong"}'
    assert encode_message("complete", operation_id="1") == '{"id":"1","type":"complete"}'
    assert encode_message("error", [], operation_id="1") == '{"id":"1","type":"error","payload":[]}'
    assert encode_message("connection_ack", {"name": "José"}) == '{"type":"connection_ack","payload":{"name":"José"}}'


@pytest.mark.parametrize("payload", [float("nan"), object()])
def test_a_payload_that_json_cannot_express_raises(payload: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode_message("next", payload, operation_id="1")


def test_a_subscribe_has_an_id_a_payload_and_a_size() -> None:
    text = json.dumps({"id": "1", "type": "subscribe", "payload": {"query": "{ é }"}}, ensure_ascii=False)
    message = parse_message(text)
    assert message == ClientMessage("subscribe", "1", {"query": "{ é }"}, len(text.encode()))
    assert parse_subscribe(message) == SubscribePayload("{ é }", None, None, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "NaN",
        "[" * 100_000,
        '{"type":"next","id":"1"}',
        '{"type":"subscribe","payload":{}}',
        '{"type":"complete","id":""}',
        '{"type":"ping","payload":[]}',
        '{"type":"ping","payload":{"a":"\\ud800"}}',
    ],
)
def test_other_texts_are_no_messages(text: str) -> None:
    with pytest.raises(InvalidClientMessage):
        parse_message(text)


@pytest.mark.parametrize(
    "payload",
    [
        None,
        {"query": 1},
        {"query": "", "operationName": 1},
        {"query": "", "variables": []},
        {"query": "", "extensions": 1},
    ],
)
def test_a_subscribe_with_a_field_of_another_type_is_refused(payload: dict[str, object] | None) -> None:
    with pytest.raises(InvalidClientMessage):
        parse_subscribe(ClientMessage("subscribe", "1", payload))
