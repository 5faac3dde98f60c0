"""How far a room with history has got at this node."""

class HistoryCursor:
    """The position of the last message that the members of a room have been sent.

    Args:
        name: of the room.
    """

    def __init__(self, name: str) -> None: ...
    @property
    def name(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def epoch(self) -> str: ...
    @property
    def mark(self) -> bytes:
        """The mark of the message at ``offset``; empty if it is not known."""
    passes_on: bool
    def move(self, offset: int, epoch: str, mark: bytes) -> None:
        """Note that the members have been sent everything up to an offset of an epoch.

        Args:
            offset, epoch: the position.
            mark: of the message there; empty if it is not known.
        """
    def take(self, stored: bytes) -> bool:
        """Take a stored envelope that does not go to the members at once. Return whether it was not taken before.

        A subclass overrides this.
        """
