"""Scenarios that once read freed memory or closed a foreign descriptor. See test_use_after_free.py."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
import time

from tests.memory.wire import REQUEST, TEXT, frame
from wshub import Connection, EventHandler, Hub, Message
from wshub.links.epoll_link import EpollLink, EpollLinks
from wshub.links.epoll_listeners import EpollListeners
from wshub.links.epoll_reactor import EpollReactor
from wshub.links.link import LinkCounters


def client(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5)


async def open_client(port: int) -> socket.socket:
    opened = client(port)
    opened.sendall(REQUEST)
    while b"\r\n\r\n" not in await asyncio.to_thread(opened.recv, 1000):
        pass
    return opened


def wait_and_exit() -> None:
    """Keep a forked process alive with all its descriptors, for 20 seconds at most."""
    time.sleep(20)
    os._exit(0)


async def a_listener_given_up_while_a_connection_waits() -> None:
    """A handler stops listening after epoll has already reported the listener."""
    servers = []
    async with Hub() as hub:
        handler = EventHandler(on_message=lambda connection, message: servers[0].stop_listening())
        async with hub.serve("127.0.0.1", 0, handler) as server:
            servers.append(server)
            sender = await open_client(server.port)
            # Nothing runs between these two lines, so one epoll_wait() reports both sockets, in this order.
            sender.sendall(frame(TEXT, b"stop"))
            late = client(server.port)
            await asyncio.sleep(0.05)
            sender.close()
            late.close()


async def a_socket_that_a_forked_process_has_too() -> None:
    """epoll reports a socket until every process has closed it, even after its link is freed."""
    gone = asyncio.Event()
    handler = EventHandler(
        on_open=lambda connection: connection.join("room"),
        on_message=lambda connection, message: None,
        on_close=lambda connection, code, reason: gone.set(),
    )
    async with Hub() as hub, hub.serve("127.0.0.1", 0, handler) as server:
        peer = await open_client(server.port)
        child = os.fork()
        if child == 0:
            wait_and_exit()
        try:
            await asyncio.sleep(0.01)
            hub._abort_all()
            await gone.wait()
            kept = [Message(bytes(300)) for _ in range(1000)]  # other objects in the link's memory
            for _ in range(5):
                peer.sendall(frame(TEXT, b"to nobody"))
                await asyncio.sleep(0.01)
            assert len(kept) == 1000
            assert hub.stats().bytes_received == len(REQUEST)
        finally:
            os.kill(child, signal.SIGKILL)
        peer.close()


async def a_reactor_that_was_never_made() -> None:
    """Descriptor 0 belongs to the process, never to an object whose fields were not set."""
    loop = asyncio.get_running_loop()
    makers = (
        EpollReactor,
        lambda: EpollReactor(loop, None),
        lambda: EpollLink(1),
        EpollLinks,
        lambda: EpollLinks(loop, None),
        EpollListeners,
        lambda: EpollListeners(None),
    )
    for make in makers:
        with contextlib.suppress(TypeError):
            make()
        os.fstat(0)


async def a_new_connection_without_a_receiver() -> None:
    """The receiver of a new connection raises any exception, or returns None."""

    class Anything(BaseException):
        pass

    def raises(link: object) -> None:
        raise Anything

    for accepted in (raises, lambda link: None):
        reactor = EpollReactor(asyncio.get_running_loop(), LinkCounters())
        with socket.create_server(("127.0.0.1", 0)) as listening:
            await reactor.listen(listening, accepted)
            peer = client(listening.getsockname()[1])
            peer.sendall(b"anything")
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                await asyncio.sleep(0.01)
                try:
                    assert peer.recv(1, socket.MSG_DONTWAIT) == b""
                except BlockingIOError:
                    continue
                except ConnectionResetError:
                    pass
                break
            assert reactor.connection_count == 0
            reactor.close()
            peer.close()


async def objects_that_were_not_initialised() -> None:
    opened = asyncio.get_running_loop().create_future()
    async with Hub() as hub, hub.serve("127.0.0.1", 0, EventHandler(on_open=opened.set_result)) as server:
        peer = await open_client(server.port)
        connection = await opened
        empty = Message.__new__(Message)
        calls = [
            lambda: Connection(None, 1, None, None, None),
            lambda: Connection(hub, 1, None, None, None),
            lambda: connection.send(empty),
            lambda: connection.send_text(empty),
            lambda: connection.send_binary(empty),
            lambda: connection.send_ping(empty),
            lambda: hub.broadcast(empty),
            lambda: repr(empty),
            lambda: empty.data,
        ]
        for number, call in enumerate(calls):
            try:
                call()
            except TypeError:
                continue
            raise AssertionError(number)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]]())
