"""The arguments of every server here: its mode, its port, and its certificate."""

import argparse
import ssl


def server_parser() -> argparse.ArgumentParser:
    """The parser of the arguments that all servers have; each adds its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["echo", "broadcast"], required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--certificate", help="for TLS: a PEM file")
    parser.add_argument("--key", help="for TLS: a PEM file")
    return parser


def ssl_context_of(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    """The context for the certificate; None without one."""
    if arguments.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(arguments.certificate, arguments.key)
    return context
