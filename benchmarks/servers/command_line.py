"""The arguments of every server here: its mode, and its port."""

import argparse


def server_parser() -> argparse.ArgumentParser:
    """The parser of the arguments that all servers have; each adds its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["echo", "broadcast"], required=True)
    parser.add_argument("--port", type=int, required=True)
    return parser
