"""What every configuration checks of its values."""

from __future__ import annotations

from wshub.errors import ConfigurationError

__all__ = ["check_bool", "check_integer"]


def check_integer(name: str, value: object, smallest: int, largest: int) -> None:
    """Raise ``ConfigurationError`` for anything but an integer from ``smallest`` to ``largest``."""
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise ConfigurationError(f"{name} must be an integer from {smallest} to {largest}, not {value!r}")


def check_bool(name: str, value: object) -> None:
    """Raise ``ConfigurationError`` for anything but ``True`` and ``False``."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}")
