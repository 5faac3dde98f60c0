"""Connections, rooms and the hub that holds them."""
