"""picows on uvloop, written as its README shows, with its cheapest way to send one message to many."""

import ssl

import uvloop
from command_line import server_parser, ssl_context_of
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

# picows writes the frame's header into the bytes before the message; 14 is the room that it asks for.
HEADER_ROOM = bytes(14)


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


class Broadcast(WSListener):
    transports: set[WSTransport] = set()  # noqa: RUF012 - one for all connections, on purpose

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transports.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.transports.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
            return
        # A server's frames are not masked, so the same bytes are right for every receiver.
        buffer = bytearray(HEADER_ROOM)
        buffer += frame.get_payload_as_memoryview()
        offset = len(HEADER_ROOM)
        for receiver in self.transports:
            receiver.send_reuse_external_bytearray(kind, buffer, offset)


async def main(mode: str, port: int, context: ssl.SSLContext | None) -> None:
    listener = Echo if mode == "echo" else Broadcast

    def listener_factory(request: WSUpgradeRequest) -> WSListener:
        return listener()

    server = await ws_create_server(
        listener_factory, "127.0.0.1", port, max_frame_size=16 * 1024 * 1024, backlog=4096, ssl=context
    )
    await server.serve_forever()


if __name__ == "__main__":
    parser = server_parser()
    arguments = parser.parse_args()
    uvloop.run(main(arguments.mode, arguments.port, ssl_context_of(arguments)))
