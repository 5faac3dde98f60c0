"""Connections, rooms and fan-out."""
