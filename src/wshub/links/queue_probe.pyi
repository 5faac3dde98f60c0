from typing import Any, Self

class FrameProbe:
    """A frame. The probe holds one reference to it.

    Args:
        payload: its payload.
        opcode: its opcode.
        conflation_key: the conflation key, or 0 for none.
        droppable: the message may be dropped while it waits.
        uses_context: the message is compressed, and later ones refer to it.
        window_bits: of a compressed message: it refers to the last ``2**window_bits`` bytes; 0 if it is not compressed.
    """

    def __new__(
        cls,
        payload: bytes,
        opcode: int = 2,
        conflation_key: int = 0,
        *,
        droppable: bool = False,
        uses_context: bool = False,
        window_bits: int = 0,
    ) -> Self: ...
    @property
    def wire(self) -> bytes:
        """The bytes of the frame."""

    @property
    def references(self) -> int:
        """The references to the frame that others hold."""

    @property
    def counts(self) -> dict[str, Any]:
        """The outcome of the message, as counters."""

class QueueProbe:
    """A queue of frames."""

    def push(self, frame: FrameProbe) -> None: ...
    def push_raw(self, data: bytes, capacity: int) -> None:
        """Append a RAW frame that nothing but the queue holds, with space for ``capacity`` bytes."""

    def extend(self, data: bytes) -> bool:
        """Make the last frame longer by these bytes. Return whether that could be done."""

    def replace(self, frame: FrameProbe) -> bool: ...
    def make_space(self, bound: int) -> int: ...
    def advance(self, length: int) -> int: ...
    def pop(self) -> bytes:
        """Remove the first frame as one that was delivered, and return its bytes."""

    def discard_unsent(self) -> int: ...
    def discard_after(self, kept: int) -> int: ...
    def pin(self, length: int) -> None: ...
    def copy(self, size: int) -> bytes:
        """Return the bytes that come first, at most ``size`` of them."""

    def clear(self) -> int: ...
    def gather(self, count: int, scratch_size: int) -> list[bytes]:
        """Return the pieces that come first, at most ``count`` of them."""

    @property
    def is_empty(self) -> bool: ...
    @property
    def charge(self) -> int: ...
    @property
    def length(self) -> int:
        """Bytes still to be sent."""

    @property
    def sent(self) -> int:
        """Bytes of the first frame that have left."""

    @property
    def messages(self) -> int: ...
