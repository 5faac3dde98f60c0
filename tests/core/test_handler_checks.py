"""An unusable handler is refused when it is passed; a usable one is always accepted."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import types
from typing import Any
from unittest import mock

import pytest

from tests.support.serving_hub import connected, serving
from wshub import Connection, EventHandler, Hub, MisuseError


def generator(connection, message):
    yield


async def async_generator(connection, message):
    yield


class CallableGenerator:
    async def __call__(self, connection, message):
        yield


class Methods:
    def generator(self, connection, message):
        yield

    def fits(self, connection, message) -> None: ...

    def takes_more(self, connection, message, code) -> None: ...

    @staticmethod
    def static(connection, message) -> None: ...

    @classmethod
    def of_class(cls, connection, message) -> None: ...


class CallableObject:
    async def __call__(self, connection, message) -> None: ...


class StaticCall:
    @staticmethod
    def __call__(connection, message) -> None: ...


class ClassCall:
    @classmethod
    def __call__(cls, connection, message) -> None: ...


class FromAnywhere(type):
    def __call__(cls, *arguments: Any) -> Any: ...


class MadeByItsMetaclass(metaclass=FromAnywhere):
    def __init__(self, one, two, three) -> None: ...


def with_database(function):
    @functools.wraps(function)
    def call(connection, message):
        return function(connection, message, "database")

    return call


@with_database
def decorated(connection, message, database) -> None: ...


@functools.lru_cache
def cached(connection, message) -> None: ...


def lying(*arguments: Any) -> None: ...


lying.__signature__ = "of something else"  # type: ignore[attr-defined]


def keyword_only(connection, message, *, strict) -> None: ...


def named(value: object) -> str:
    """Return a name without the address in repr(), so that each process collects the same tests."""
    return re.sub(r" at 0x\w+| id='\d+'", "", repr(value))


GENERATORS = [
    generator,
    async_generator,
    CallableGenerator(),
    Methods().generator,
    functools.partial(generator),
    functools.partial(Methods().generator),
    functools.partial(CallableGenerator()),
    types.coroutine(lambda connection, message: (yield)),
]

TAKES_OTHERS = [
    lambda: None,
    lambda connection: None,
    lambda connection, message, code: None,
    keyword_only,
    Methods.fits,
    Methods().takes_more,
    functools.partial(lambda connection, message: None, 1),
    functools.partial(lambda connection, message: None, message=1),
    functools.partial(lambda connection, message: None, code=1),
    functools.partial(lambda connection, message, /: None, message=1),
    [].append,
    asyncio.Queue.put_nowait.__get__(object()),
    Methods,
]

FITS = [
    lambda connection, message: None,
    lambda *arguments: None,
    lambda connection, *others: None,
    lambda connection, message, code=1: None,
    lambda connection, message, *, strict=False, **others: None,
    CallableObject(),
    StaticCall(),
    ClassCall(),
    Methods().fits,
    Methods.static,
    Methods().static,
    Methods.of_class,
    MadeByItsMetaclass,
    decorated,
    cached,
    lying,
    print,
    max,
    dict,
    int,
    Connection.send,
    functools.partial(Methods().takes_more, "first"),
    functools.partial(keyword_only, strict=True),
    functools.partial(lambda connection, message, code: None, code=1),
    functools.partial(lambda connection, message, **others: None, code=1),
    functools.partial(functools.partial(keyword_only), strict=True),
    functools.partial(mock.Mock(), 1, 2),
    mock.Mock(),
    mock.MagicMock(),
    mock.AsyncMock(),
    mock.Mock(spec=decorated),
    mock.Mock(spec=Methods().fits),
    mock.Mock(spec=types.FunctionType),
    mock.create_autospec(decorated),
]


@pytest.mark.parametrize("function", GENERATORS, ids=named)
def test_a_generator_is_no_handler_in_whatever_form(function) -> None:
    with pytest.raises(MisuseError, match=r"on_message must be a function or a coroutine function, and .* generator"):
        EventHandler(on_message=function)


@pytest.mark.parametrize("function", TAKES_OTHERS, ids=named)
def test_a_function_that_takes_other_arguments_is_no_handler(function) -> None:
    with pytest.raises(MisuseError, match=r"on_message is called with \(connection, message\), and "):
        EventHandler(on_message=function)


@pytest.mark.parametrize("function", FITS, ids=named)
def test_whatever_can_be_called_is_a_handler(function) -> None:
    assert EventHandler(on_message=function).on_message is function
    assert type("Chat", (EventHandler,), {"on_message": staticmethod(function)})().on_message is function


def test_each_event_has_its_arguments() -> None:
    for name, count in (("on_open", 1), ("on_message", 2), ("on_close", 3), ("on_error", 2), ("on_ping", 2)):
        arguments = [f"argument_{number}" for number in range(count)]
        EventHandler(**{name: eval(f"lambda {', '.join(arguments)}: None")})
        with pytest.raises(MisuseError, match=rf"{name} is called with \(connection"):
            EventHandler(**{name: eval(f"lambda {', '.join(arguments[1:])}: None")})
        with pytest.raises(MisuseError, match=rf"{name} is called with \(connection"):
            EventHandler(**{name: eval(f"lambda {', '.join(arguments)}, more: None")})


def test_what_is_wrong_is_said_with_what_is_right() -> None:
    with pytest.raises(
        MisuseError, match=r"is called with \(connection, message\), and keyword_only\(connection, message, "
    ):
        EventHandler(on_message=keyword_only)
    with pytest.raises(MisuseError, match=r"generator function: nothing in it would run\. Take the yield out"):
        EventHandler(on_message=generator)


# Subclasses


@pytest.mark.parametrize(
    ("namespace", "what_is_right"),
    [
        ({"on_mesage": lambda self, connection, message: None}, "Do you mean on_message?"),
        ({"on_messages": lambda self, connection, message: None}, "Do you mean on_message?"),
        ({"onMessage": lambda self, connection, message: None}, "Do you mean on_message?"),
        ({"on_connect": lambda self, connection: None}, "Do you mean on_open?"),
        ({"on_disconnect": lambda self, connection: None}, "Do you mean on_close?"),
        ({"on_mesage": staticmethod(lambda connection, message: None)}, "Do you mean on_message?"),
        ({"on_mesage": classmethod(lambda cls, connection, message: None)}, "Do you mean on_message?"),
        ({"on_order": lambda self, order: None}, "begin its name with an underscore"),
        ({"on_message": lambda self, message: None}, r"Chat.on_message is called with \(connection, message\)"),
        ({"on_message": staticmethod(lambda self, connection, message: None)}, r"\(connection, message\)"),
        ({"on_message": classmethod(lambda connection, message: None)}, r"\(connection, message\)"),
        ({"on_message": Methods.generator}, "Take the yield out"),
        ({"on_message": staticmethod(async_generator)}, "Take the yield out"),
        ({"on_message": CallableGenerator()}, "Take the yield out"),
        ({"on_message": 5}, "Chat.on_message must be a function"),
    ],
)
def test_a_method_that_cannot_work_is_refused_by_the_class_statement(namespace, what_is_right) -> None:
    with pytest.raises(MisuseError, match=what_is_right):
        type("Chat", (EventHandler,), namespace)


def test_a_subclass_may_have_whatever_else_it_wants() -> None:
    class Chat(EventHandler):
        on_count = 5
        on_message = None
        once = print
        onset: Any = None

        def _on_order(self, order) -> None: ...

        def handle(self, order):
            yield order

        @property
        def on_duty(self) -> bool:
            return True

        @functools.cached_property
        def on_open(self) -> Any:  # type: ignore[override]
            return lambda connection: None

        on_close = functools.partialmethod(lambda self, *arguments: None)

    class MoreChat(Chat):
        def on_message(self, connection, message) -> None: ...

    for kind in (Chat, MoreChat):
        Hub().serve(handler=kind())
    Hub().serve(handler=mock.MagicMock(spec=EventHandler))


def test_methods_of_what_a_subclass_is_mixed_from_are_checked() -> None:
    class Mixin:
        def on_mesage(self, connection, message) -> None: ...

    with pytest.raises(MisuseError, match=r"Mixin\.on_mesage would never be called"):
        type("Chat", (Mixin, EventHandler), {})

    class Base(EventHandler):
        pass

    with pytest.raises(MisuseError, match="Do you mean on_message"):
        type("Chat", (Base, Mixin), {})


def test_attributes_of_an_instance_are_checked_when_it_is_given_to_a_hub() -> None:
    for name, value in (("on_mesage", print), ("on_message", async_generator), ("on_message", lambda: None)):
        handler = EventHandler()
        setattr(handler, name, value)
        hub = Hub()
        for give in (hub.asgi, lambda handler: hub.serve(handler=handler)):  # noqa: B023
            with pytest.raises(MisuseError, match="on_mes"):
                give(handler)


# Coroutine functions and hooks that are passed to a hub


async def test_the_life_of_a_connection_is_a_coroutine_function_that_takes_it() -> None:
    async def without_argument() -> None: ...

    async def generates(connection):
        yield

    async def two(first, connection) -> None: ...

    hub = Hub()
    for give in (hub.asgi, lambda handler: hub.serve(handler=handler)):
        with pytest.raises(MisuseError, match=r"is called with \(connection\), and .*without_argument\(\)"):
            give(without_argument)
        with pytest.raises(MisuseError, match="has no yield"):
            give(generates)
        with pytest.raises(MisuseError, match=r"give EventHandler\(\), not the class"):
            give(EventHandler)
        give(functools.partial(two, 1))
        give(mock.AsyncMock())


def test_on_upgrade_is_a_function_of_the_request() -> None:
    async def generates(request):
        yield

    with pytest.raises(MisuseError, match=r"on_upgrade .* generator function"):
        Hub(on_upgrade=generates)  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match=r"on_upgrade is called with \(request\)"):
        Hub(on_upgrade=lambda: None)  # type: ignore[arg-type,misc]
    with pytest.raises(MisuseError, match="clock must be a function"):
        Hub(clock=5)  # type: ignore[arg-type]
    Hub(on_upgrade=mock.Mock(), clock=mock.Mock(return_value=0.0))


@pytest.mark.parametrize("function", [generator, async_generator])
async def test_a_generator_that_a_handler_returns_fails_as_any_error_does(caplog, function) -> None:
    """A wrapper does not reveal the kind of the function inside it."""

    errors: list[BaseException] = []
    handler = EventHandler(
        on_message=lambda connection, message: function(connection, message),
        on_error=lambda connection, error: errors.append(error),
    )
    with caplog.at_level(logging.CRITICAL, "wshub.server"):
        async with serving(handler) as (_, url), connected(url) as client:
            await client.send("x")
            await client.wait_closed()
            assert client.close_code == 1011
    assert isinstance(errors[0], MisuseError)
    assert "a handler has no yield" in str(errors[0])
