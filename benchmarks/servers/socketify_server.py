"""socketify, which is uWebSockets: compression with one state for all connections, and its publishing."""

from command_line import server_parser
from socketify import App, AppListenOptions, AppOptions, CompressOptions, OpCode, WebSocket

TOPIC = "all"


def main(mode: str, port: int, compression: bool, certificate: str | None, key: str | None) -> None:
    app = App(AppOptions(cert_file_name=certificate, key_file_name=key) if certificate is not None else None)

    def on_open(socket: WebSocket) -> None:
        socket.subscribe(TOPIC)

    def on_message(socket: WebSocket, message: str | bytes, opcode: OpCode) -> None:
        if mode == "echo":
            socket.send(message, opcode, compression)
        else:
            app.publish(TOPIC, message, opcode, compression)

    options = CompressOptions.SHARED_COMPRESSOR if compression else CompressOptions.DISABLED
    behavior = {
        "compression": options,
        "max_payload_length": 16 * 1024 * 1024,
        "idle_timeout": 0,
        "max_backpressure": 64 * 1024 * 1024,
        "open": on_open,
        "message": on_message,
    }
    app.ws("/", behavior)
    app.listen(AppListenOptions(port=port, host="127.0.0.1"), lambda config: None)
    app.run()


if __name__ == "__main__":
    parser = server_parser()
    parser.add_argument("--compression", action="store_true")
    arguments = parser.parse_args()
    main(arguments.mode, arguments.port, arguments.compression, arguments.certificate, arguments.key)
