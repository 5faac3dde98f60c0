"""The programs of the page on the HTTP API: beside a hub, and in a process of its own."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path

import httpx
import jsonschema
import websockets

from tests.support.free_ports import free_port
from tests.support.pages import blocks, codes, rows, write_programs
from tests.support.programs import environment, running_program
from tests.support.redis_engine import running_engine
from wshub.publisher.http.answers import ERROR_STATUSES
from wshub.publisher.http.commands import COMMANDS
from wshub.publisher.http.openapi import document
from wshub.publisher.http.queries import QUERIES

PAGE = "http-api.md"


def test_the_programs_send_to_clients(tmp_path: Path) -> None:
    write_programs(PAGE, tmp_path)
    port, api_port = free_port(), free_port()
    (curl,) = [text for text in blocks(PAGE, "sh") if text.startswith("curl")]
    words = shlex.split(curl.replace("\\\n", " "))
    message = json.loads(words[words.index("--json") + 1])
    (batch,) = [json.loads(text) for text in blocks(PAGE, "json") if "commands" in text]

    async def scenario() -> None:
        headers = {"Authorization": "Bearer 0123456789abcdef"}
        async with (
            websockets.connect(f"ws://127.0.0.1:{port}/chat/lobby?user=ann", proxy=None) as ann,
            websockets.connect(f"ws://127.0.0.1:{port}/chat/lobby?user=ben", proxy=None) as ben,
            httpx.AsyncClient(trust_env=False, headers=headers) as http,
        ):
            for url in (f"http://127.0.0.1:{port}/api", f"http://127.0.0.1:{api_port}"):
                while not (await http.get(f"{url}/health", headers={"Authorization": ""})).json()["ok"]:
                    await asyncio.sleep(0.05)
                assert (
                    await http.post(f"{url}/publish", json=message, headers={"Authorization": ""})
                ).status_code == 401
                assert (await http.post(f"{url}/publish", json=message)).status_code == 200
                assert await ann.recv() == await ben.recv() == message["text"]
            url = f"http://127.0.0.1:{port}/api"
            assert (await http.get(f"{url}/room_counts?room=lobby")).json() == {"rooms": {"lobby": 2}}
            assert len((await http.get(f"{url}/nodes")).json()["nodes"]) == 1
            assert (await http.post(f"http://127.0.0.1:{api_port}/batch", json=batch)).status_code == 200
            assert await ben.recv() == "Ann has left."
            # Room and user are two channels of the broker, so the end may come first.
            try:
                assert await ann.recv() == "Ann has left."
                await ann.recv()
            except websockets.ConnectionClosed as closed:
                assert closed.rcvd is not None
                assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "logged out")
            else:
                raise AssertionError("ann is still there")

    with running_engine("redis") as engine:
        variables = environment(WSHUB_BROKER=engine.url, API_TOKEN="0123456789abcdef")
        serve = [sys.executable, "-m", "wshub", "serve"]
        with (
            running_program([*serve, "main:app", "--port", str(port)], port=port, env=variables, cwd=tmp_path) as hub,
            running_program(
                [*serve, "api:api", "--port", str(api_port)], port=api_port, env=variables, cwd=tmp_path
            ) as api,
        ):
            asyncio.run(asyncio.wait_for(scenario(), 30))
            assert "Traceback" not in api.end()
            assert "Traceback" not in hub.end()


def test_the_tables_have_every_request_and_every_error() -> None:
    requests = [codes(cell)[0].partition("?")[0] for cell, _ in rows(PAGE, "Requests")[:13]]
    expected = [f"POST /{name}" for name in [*COMMANDS, "batch"]]
    expected += [f"GET /{name}" for name in [*QUERIES, "health", "openapi.json"]]
    assert requests == expected
    errors = {}
    for statuses, names, _ in rows(PAGE, "Answers"):
        errors |= dict(zip(codes(names), map(int, statuses.split(", ")), strict=True))
    assert errors == ERROR_STATUSES


def test_the_answers_of_the_page_are_those_of_the_document() -> None:
    schemas = document("1.0", "", 1 << 20, 5)["components"]["schemas"]
    answers = [json.loads(text) for text in blocks(PAGE, "json")]
    found = set()
    for name, field in (("Published", "is_duplicate"), ("History", "next"), ("Presence", "members")):
        for answer in answers:
            if field in answer:
                jsonschema.validate(
                    answer, {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
                )
                assert set(answer) == set(schemas[name]["properties"])
                found.add(name)
    assert len(found) == 3
