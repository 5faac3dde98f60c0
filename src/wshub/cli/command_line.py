"""The command ``wshub``."""

from __future__ import annotations

import os
import sys
from typing import Any

try:
    import click
    from uvicorn.main import main as uvicorn_command

    from wshub.uvicorn.running import GRACEFUL_SHUTDOWN, LOOPS, check_address, run
except ImportError as error:
    sys.exit(f"The command needs what comes with: pip install wshub[app] ({error})")

from wshub.brokers.choosing import broker_from_url
from wshub.brokers.interface import HistoryConfig
from wshub.errors import ConfigurationError, WebSocketError
from wshub.publisher import Publisher

__all__ = ["main"]

HISTORY_SETTINGS = ("size", "max_bytes", "ttl_ms", "position_ttl_ms")
"""The settings of a HistoryConfig that are numbers."""


def _history_of(_context: click.Context, _option: click.Parameter, value: str | None) -> HistoryConfig | None:
    """Return the HistoryConfig that the value of an option stands for, such as ``size=500,ttl_ms=3600000``."""
    if value is None:
        return None
    numbers: dict[str, Any] = {}
    for setting in value.split(","):
        name, _, number = setting.partition("=")
        if name not in HISTORY_SETTINGS or not number.isdecimal() or name in numbers:
            raise click.BadParameter(
                f"{setting!r} is no setting: give some of {', '.join(HISTORY_SETTINGS)}, such as size=500"
            )
        numbers[name] = int(number)
    try:
        return HistoryConfig(**numbers)
    except ConfigurationError as error:
        raise click.BadParameter(str(error)) from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wshub")
def main() -> None:
    """A WebSocket hub for Python."""


def _serve(app: str, headers: list[str], broker: str | None = None, **options: Any) -> None:
    if broker:
        try:
            broker_from_url(broker)
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from None
        # The hubs of this process and of its workers find it there.
        os.environ["WSHUB_BROKER"] = broker
    # An option that is not given has uvicorn's default: None, or an empty list, which means the same.
    given = {name: value for name, value in options.items() if value not in (None, [], ())}
    try:
        check_address(given)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    run(app, headers=[tuple(header.split(":", 1)) for header in headers], **given)


def _parameters() -> list[click.Parameter]:
    """Return the options of uvicorn's command that ``wshub serve`` passes on, and its own."""
    taken_over = {"loop", "ws", "version", "timeout_graceful_shutdown"}
    return [
        *(parameter for parameter in uvicorn_command.params if parameter.name not in taken_over),
        click.Option(
            ["--loop"], default="auto", show_default=True, help=f"Event loop: {', '.join(LOOPS)}, or an import."
        ),
        click.Option(
            ["--broker"],
            metavar="URL",
            help="Join the hubs of all machines, such as redis://HOST or nats://HOST. "
            "Without it, those of --workers are joined.",
        ),
        click.Option(
            ["--timeout-graceful-shutdown"],
            type=int,
            default=GRACEFUL_SHUTDOWN,
            show_default=True,
            help="Seconds that connections and requests have to end.",
        ),
    ]


main.add_command(
    click.Command(
        "serve",
        params=_parameters(),
        callback=_serve,
        context_settings={"auto_envvar_prefix": "WSHUB"},
        short_help="Serve an ASGI application, such as main:app.",
        help="Serve an ASGI application, such as main:app, with uvicorn, and its WebSockets natively.\n\n"
        "With --workers, a broadcast reaches the connections of every worker. With --broker, it reaches every machine."
        "\n\nWith --ssl-certfile, SIGHUP reads the certificate again. With --workers, SIGHUP replaces the workers.",
    )
)


# The options come first: a message after ROOM may begin with a dash.
@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--broker", required=True, metavar="URL", envvar="WSHUB_BROKER", help="Such as redis://localhost.")
@click.option("--hub", default="hub", show_default=True, help="The name of the hubs.")
@click.option("--user", is_flag=True, help="ROOM is the name of a user instead.")
@click.option("--all", "to_all", is_flag=True, help="Send to all connections: there is no ROOM.")
@click.option(
    "--history",
    metavar="SETTINGS",
    callback=_history_of,
    help="Store the message in the history of ROOM, which the hubs configure in the same way: size=500,ttl_ms=3600000.",
)
@click.option("--idempotency-key", default="", metavar="KEY", help="Store one message for a key, within five minutes.")
@click.argument("words", nargs=-1, metavar="[ROOM] MESSAGE", type=click.UNPROCESSED)
def publish(
    broker: str,
    hub: str,
    user: bool,
    to_all: bool,
    history: HistoryConfig | None,
    idempotency_key: str,
    words: tuple[str, ...],
) -> None:
    """Send a message to the members of a room, on every node.

    The options come before ROOM. MESSAGE is text. If it is -, the text is read from the standard input: UTF-8, without
    the last newline.
    """
    if len(words) != (1 if to_all else 2) or (user and to_all):
        raise click.UsageError("give the options first, then a room and a message, or --all and a message")
    if (history or idempotency_key) and (user or to_all):
        raise click.UsageError("only a room has a history: leave out --history and --idempotency-key")
    if idempotency_key and not history:
        raise click.UsageError("--idempotency-key needs --history, with the settings of the room")
    message = _message_from_input() if words[-1] == "-" else words[-1]
    name = None if to_all else words[0]
    # ROOM itself may have a "*" in its name.
    histories = {"*": history} if history else None
    try:
        with Publisher(broker, hub=hub, histories=histories) as publisher:
            publisher.publish(
                message,
                room=None if user else name,
                user=name if user else None,
                idempotency_key=idempotency_key,
            )
    except WebSocketError as error:
        raise click.ClickException(str(error)) from None


def _message_from_input() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"the standard input is not UTF-8: {error}") from None
