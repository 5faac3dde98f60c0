"""A hub's connections under uvicorn: ``run`` serves an application."""

from wshub.uvicorn.running import run

__all__ = ["run"]
