"""The command ``wshub``."""

from __future__ import annotations

import sys
from typing import Any

try:
    import click
    from uvicorn.main import main as uvicorn_command

    from wshub.uvicorn.running import GRACEFUL_SHUTDOWN, LOOPS, check_address, run
except ImportError as error:
    sys.exit(f"The command needs what comes with: pip install wshub[app] ({error})")

from wshub.errors import ConfigurationError

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="wshub")
def main() -> None:
    """A WebSocket hub for Python."""


def _serve(app: str, headers: list[str], **options: Any) -> None:
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
        "Each process of --workers has hubs of its own: a broadcast reaches the connections of its process.",
    )
)
