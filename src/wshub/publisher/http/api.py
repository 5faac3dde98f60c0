"""The ASGI application of the HTTP API."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, NoReturn

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"the HTTP API needs Starlette: pip install wshub[app] ({error})") from error

from wshub.errors import MisuseError
from wshub.hub import Hub
from wshub.protocol.validation import check_integer
from wshub.publisher.http.answers import ApiError, answer, api_error_of, error_answer
from wshub.publisher.http.commands import COMMANDS, Command, Target, carry_out_all, count_messages
from wshub.publisher.http.openapi import document
from wshub.publisher.http.parameters import read_parameters
from wshub.publisher.http.queries import QUERIES, Query, health
from wshub.publisher.http.schemas import find_mistake
from wshub.publisher.http.tokens import Tokens
from wshub.publisher.publishers import AsyncPublisher

__all__ = ["HttpApi"]

logger = logging.getLogger("wshub.server")

Endpoint = Callable[[Request], Awaitable[Response]]


class HttpApi:
    """An ASGI application that takes commands by HTTP. Mount it, or serve it by itself::

        app.mount("/api", HttpApi(hub, tokens=[token]))
        api = HttpApi(AsyncPublisher("redis://localhost"), tokens=[token])  # wshub serve main:api

    A request needs the header ``Authorization: Bearer TOKEN``, except for ``/health`` and ``/openapi.json``. Serve it
    with TLS: a token is a password.

    Args:
        target: a Hub of the same process; or an AsyncPublisher, which needs no hub there, and cannot answer questions
            about rooms and nodes. Served by itself, the API closes the publisher at the end.
        tokens: those that are accepted. To change a token, accept both for a while.
        max_body: bytes that a body may have.
        max_commands: the number of commands in a batch, and of rooms in a command; in a batch, both together.

    Raises:
        ConfigurationError: a token is too short, or a limit cannot be.
        MisuseError: the target is something else.
    """

    def __init__(
        self, target: Hub | AsyncPublisher, *, tokens: Iterable[str], max_body: int = 1 << 20, max_commands: int = 1000
    ) -> None:
        if not isinstance(target, Hub | AsyncPublisher):
            raise MisuseError(f"the HTTP API takes a Hub or an AsyncPublisher, not {type(target).__name__}")
        self._target: Target = target
        self._tokens = Tokens(tokens)
        self._max_body = check_integer("max_body", max_body, 1, 1 << 30)
        self._max_commands = check_integer("max_commands", max_commands, 1, 100_000)
        self._schemas = {command.name: command.schema(self._max_commands) for command in COMMANDS.values()}
        routes = [
            *(self._route("POST", command.name, self._command(command)) for command in COMMANDS.values()),
            self._route("POST", "batch", self._batch),
            *(self._route("GET", query.name, self._query(query)) for query in QUERIES.values()),
            self._route("GET", "health", self._health, is_open=True),
            self._route("GET", "openapi.json", self._document, is_open=True),
        ]
        self._application = Starlette(
            routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _http_error}
        )

    def __repr__(self) -> str:
        return f"<HttpApi for {self._target!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _application: Starlette) -> AsyncIterator[None]:
        target = self._target
        if isinstance(target, AsyncPublisher):
            # It connects before the first request comes.
            target.health()
        try:
            yield
        finally:
            if isinstance(target, AsyncPublisher):
                await target.close()

    def _route(self, method: str, name: str, endpoint: Endpoint, *, is_open: bool = False) -> Route:
        async def handle(request: Request) -> Response:
            try:
                if not is_open and not self._tokens.accept(request.headers.get("authorization")):
                    raise ApiError("unauthorized", "send the header Authorization: Bearer TOKEN")
                return await endpoint(request)
            except ClientDisconnect:
                # Nothing gets the answer.
                return Response(status_code=400)
            except Exception as error:
                known = api_error_of(error)
                if known is None:
                    logger.exception("a request to the HTTP API has failed")
                    known = ApiError("internal", "the server has failed, and has logged why")
                return error_answer(known)

        return Route(f"/{name}", handle, methods=[method])

    # Endpoints

    def _command(self, command: Command) -> Endpoint:
        schema = self._schemas[command.name]

        async def endpoint(request: Request) -> Response:
            body = await self._body(request)
            mistake = find_mistake(schema, body)
            if mistake is not None:
                raise ApiError("invalid_request", mistake)
            return _several(await command.run(self._target, body))

        return endpoint

    async def _batch(self, request: Request) -> Response:
        body = await self._body(request)
        commands = body.get("commands") if isinstance(body, dict) and len(body) == 1 else None
        if not isinstance(commands, list):
            raise ApiError("invalid_request", "the body must be an object with the field 'commands', an array")
        if count_messages(commands) > self._max_commands:
            raise ApiError("invalid_request", f"a batch has at most {self._max_commands} commands and rooms together")
        return _several({"results": await carry_out_all(self._target, commands, self._schemas)})

    def _query(self, query: Query) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            if not isinstance(self._target, Hub):
                raise ApiError("needs_hub", f"a publisher cannot answer {query.name}: ask an API that has a hub")
            return answer(await query.run(self._target, read_parameters(query.parameters, request.query_params)))

        return endpoint

    async def _health(self, _request: Request) -> Response:
        ok, body = health(self._target)
        return answer(body, 200 if ok else 503)

    async def _document(self, request: Request) -> Response:
        root = request.scope.get("root_path", "")
        return answer(document(version("wshub"), root, self._max_body, self._max_commands))

    async def _body(self, request: Request) -> Any:
        """Return the JSON of a request."""
        body = bytearray()
        async for chunk in request.stream():
            if len(body) + len(chunk) > self._max_body:
                raise ApiError("too_large", f"the body has more than {self._max_body} bytes")
            body += chunk
        try:
            return json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ApiError("invalid_request", f"the body is no JSON: {error}") from None


def _several(body: dict[str, Any]) -> Response:
    """Return the answer to a command. Its status is 207 if a part of it has failed."""
    has_failed = any("error" in result for result in body.get("results", ()))
    return answer(body, 207 if has_failed else 200)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


async def _http_error(request: Request, error: Exception) -> Response:
    """Return the answer for a path that does not exist, or a method that the path does not take."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        response = error_answer(ApiError("method_not_allowed", f"{request.url.path} takes another method"))
        response.headers.update(error.headers or {})
        return response
    return error_answer(ApiError("not_found", f"there is no {request.url.path}: GET /openapi.json lists the paths"))
