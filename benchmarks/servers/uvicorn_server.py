"""uvicorn on uvloop with its own WebSocket protocol: a Starlette application that echoes, or sends to all."""

import uvicorn
from command_line import server_parser
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

sockets: set[WebSocket] = set()


def application(mode: str) -> Starlette:
    async def connected(websocket: WebSocket) -> None:
        await websocket.accept()
        sockets.add(websocket)
        try:
            while True:
                data = await websocket.receive_bytes()
                for receiver in (websocket,) if mode == "echo" else tuple(sockets):
                    await receiver.send_bytes(data)
        except WebSocketDisconnect:
            pass
        finally:
            sockets.discard(websocket)

    return Starlette(routes=[WebSocketRoute("/", connected)])


if __name__ == "__main__":
    arguments = server_parser().parse_args()
    uvicorn.run(
        application(arguments.mode),
        port=arguments.port,
        loop="uvloop",
        ws="websockets-sansio",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        backlog=4096,
        log_level="error",
        ssl_certfile=arguments.certificate,
        ssl_keyfile=arguments.key,
    )
