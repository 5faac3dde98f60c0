"""The two roles of RFC 6455."""

from __future__ import annotations

from enum import IntEnum

from wshub.errors import ConfigurationError

__all__ = ["Role", "check_role"]


class Role(IntEnum):
    """The role of this side of a connection.

    A client masks every frame that it sends, a server none. Each fails the connection with 1002 if the peer does
    otherwise (RFC 6455 section 5.1).
    """

    SERVER = 0
    CLIENT = 1


def check_role(role: object) -> Role:
    """Return the role; raise ``ConfigurationError`` for anything else."""
    if not isinstance(role, Role):
        raise ConfigurationError(f"role must be Role.SERVER or Role.CLIENT, not {role!r}")
    return role
