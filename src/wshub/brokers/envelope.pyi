from typing import Literal, NamedTuple, TypeAlias

_EnvelopeKind: TypeAlias = Literal["room", "all", "user", "control"]

class DecodedEnvelope(NamedTuple):
    kind: _EnvelopeKind
    name: str
    payload: bytes
    is_binary: bool
    node: int
    number: int
    sent_at: int
    compress: bool | None
    slow_consumer: str | None
    key: str | None
    excluded: int | None = None
    publisher: str | None = None

def encode_envelope(
    kind: _EnvelopeKind,
    name: str,
    payload: bytes,
    *,
    is_binary: bool = False,
    node: int = 0,
    number: int = 0,
    sent_at: int = 0,
    compress: bool | None = None,
    slow_consumer: str | None = None,
    key: str | None = None,
    excluded: int | None = None,
    publisher: str | None = None,
) -> bytes: ...
def decode_envelope(data: bytes) -> DecodedEnvelope: ...
def mark_of(envelope: bytes) -> bytes: ...

class DecodedHead(NamedTuple):
    offset: int
    previous: int
    epoch: str

def encode_stored(envelope: bytes, *, offset: int, previous: int, epoch: str) -> bytes: ...
def decode_stored(data: bytes) -> tuple[DecodedHead, bytes]: ...
