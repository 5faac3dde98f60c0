"""The answers of the HTTP API, and its errors."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from wshub.errors import BrokerError, BrokerUnavailable, BrokerUncertain, InvalidMessageError

__all__ = ["ERROR_STATUSES", "ApiError", "answer", "api_error_of", "error_answer"]

ERROR_STATUSES = {
    "invalid_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "no_history": 404,
    "no_presence": 404,
    "method_not_allowed": 405,
    "too_large": 413,
    "internal": 500,
    "needs_hub": 501,
    "broker_refused": 502,
    "broker_unavailable": 503,
    "broker_uncertain": 504,
}
"""The HTTP status of each error, by the code in the answer."""


class ApiError(Exception):
    """A request that the API does not carry out.

    Args:
        code: one of ``ERROR_STATUSES``.
        message: says what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def status(self) -> int:
        """The HTTP status."""
        return ERROR_STATUSES[self.code]

    def asdict(self) -> dict[str, str]:
        """Return the value of ``error`` in the answer."""
        return {"code": self.code, "message": str(self)}


def api_error_of(error: Exception) -> ApiError | None:
    """Return what the client is told about an error of a hub or a publisher; None if it is a mistake of the program."""
    match error:
        case ApiError():
            return error
        case BrokerUnavailable():
            return ApiError("broker_unavailable", f"nothing reached other nodes, so try again later: {error}")
        case BrokerUncertain():
            return ApiError("broker_uncertain", f"it may have reached other nodes: {error}")
        case BrokerError():
            return ApiError("broker_refused", f"the broker has refused it, so look at the broker: {error}")
        case InvalidMessageError():
            return ApiError("invalid_request", str(error))
    return None


def answer(value: Any, status: int = 200) -> Response:
    """Return an answer with JSON."""
    body = json.dumps(value, separators=(",", ":")).encode()
    return Response(body, status, {"cache-control": "no-store"}, "application/json")


def error_answer(error: ApiError) -> Response:
    """Return the answer that tells an error."""
    response = answer({"error": error.asdict()}, error.status)
    if error.code == "unauthorized":
        response.headers["www-authenticate"] = "Bearer"
    elif error.code == "broker_unavailable":
        response.headers["retry-after"] = "1"
    return response
