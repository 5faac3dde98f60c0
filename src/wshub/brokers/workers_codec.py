"""The bodies of records by which workers speak about owners, histories and presence.

A body is a byte for its kind, and fields. A number has 8 bytes, little-endian; text and bytes follow their length.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Self

__all__ = ["Reader", "Signal", "Writer"]

NUMBER = Struct("<Q")


class Writer:
    """Builds a body."""

    def __init__(self, kind: int) -> None:
        self._parts = [bytes([kind])]

    def number(self, number: int) -> None:
        self._parts.append(NUMBER.pack(number))

    def data(self, data: bytes) -> None:
        self._parts += (NUMBER.pack(len(data)), data)

    def text(self, text: str) -> None:
        self.data(text.encode("utf-8", "surrogatepass"))

    def body(self) -> bytes:
        return b"".join(self._parts)


class Reader:
    """Takes a body apart. Raises ``ValueError`` if it is malformed."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._position = 1

    def number(self) -> int:
        (number,) = NUMBER.unpack(self._take(NUMBER.size))
        return int(number)

    def data(self) -> bytes:
        return self._take(self.number())

    def text(self) -> str:
        return self.data().decode("utf-8", "surrogatepass")

    def _take(self, length: int) -> bytes:
        start, self._position = self._position, self._position + length
        if self._position > len(self._body):
            raise ValueError("the body of a record is too short")
        return self._body[start : self._position]


@dataclass(frozen=True, slots=True)
class Signal:
    """A body without fields."""

    KIND: ClassVar[int]

    def encode(self) -> bytes:
        return bytes([self.KIND])

    @classmethod
    def decode(cls, reader: Reader) -> Self:
        return cls()
