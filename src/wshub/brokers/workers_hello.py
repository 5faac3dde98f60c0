"""HELLO: how two workers introduce themselves to each other."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from wshub.brokers.interface import NodeInfo

__all__ = ["VERSION", "Hello"]

VERSION = 1
"""Of the records. A node of another version is left alone: both versions run for a while when workers are replaced."""

Value = TypeVar("Value")

HEXADECIMAL = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Hello:
    """The body of a HELLO record."""

    node: NodeInfo
    """The node that says it."""

    serial: int
    """Orders the connections between two nodes: each node counts those that it makes or answers."""

    version: int = VERSION

    knows_histories: bool = True
    """Whether the node takes records about histories. A worker of an earlier release does not say it."""

    knows_presences: bool = True
    """Whether it takes records about presences, likewise."""

    def encode(self) -> bytes:
        """Return the body of the record."""
        fields = {
            "version": self.version,
            "serial": self.serial,
            "node": asdict(self.node),
            "knows_histories": self.knows_histories,
            "knows_presences": self.knows_presences,
        }
        return json.dumps(fields).encode()

    @classmethod
    def decode(cls, body: bytes) -> Hello:
        """Return what a record says. Fields that this version does not know are ignored.

        Raises:
            ValueError: the record is malformed.
        """
        try:
            fields = json.loads(body)
            node = fields["node"]
            found = cls(
                NodeInfo(
                    id=_expect(node["id"], str),
                    hub=_expect(node["hub"], str),
                    host=_expect(node.get("host", ""), str),
                    pid=_expect(node.get("pid", 0), int),
                    started_at=float(node.get("started_at", 0)),
                    receives=_expect(node.get("receives", True), bool),
                ),
                _expect(fields["serial"], int),
                _expect(fields["version"], int),
                _expect(fields.get("knows_histories", False), bool),
                _expect(fields.get("knows_presences", False), bool),
            )
        except (KeyError, TypeError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError(f"a malformed HELLO: {error}") from None
        if len(found.node.id) != 16 or not HEXADECIMAL.issuperset(found.node.id):
            raise ValueError("a malformed HELLO: the id of a node has 16 hexadecimal digits")
        return found


def _expect(value: Any, kind: type[Value]) -> Value:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
