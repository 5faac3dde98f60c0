"""Whole applications: HTTP by Starlette and uvicorn, WebSockets by a hub."""

from wshub.app.app import App
from wshub.app.context import Context

__all__ = ["App", "Context"]
