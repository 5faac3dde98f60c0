"""A standalone server of a hub."""
