"""aiohttp on uvloop, as its documentation shows, with compression where it is asked for."""

import asyncio
import ssl

import uvloop
from aiohttp import WSMsgType, web
from command_line import server_parser, ssl_context_of

sockets: set[web.WebSocketResponse] = set()


def application(mode: str, compression: bool) -> web.Application:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=compression, max_msg_size=16 * 1024 * 1024)
        await socket.prepare(request)
        sockets.add(socket)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    send = web.WebSocketResponse.send_str
                elif message.type is WSMsgType.BINARY:
                    send = web.WebSocketResponse.send_bytes
                else:
                    continue
                for receiver in (socket,) if mode == "echo" else tuple(sockets):
                    await send(receiver, message.data)
        finally:
            sockets.discard(socket)
        return socket

    app = web.Application()
    app.router.add_get("/", handler)
    return app


async def main(mode: str, port: int, compression: bool, context: ssl.SSLContext | None) -> None:
    runner = web.AppRunner(application(mode, compression), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096, ssl_context=context).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = server_parser()
    parser.add_argument("--compression", action="store_true")
    arguments = parser.parse_args()
    uvloop.run(main(arguments.mode, arguments.port, arguments.compression, ssl_context_of(arguments)))
