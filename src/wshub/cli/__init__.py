"""The command ``wshub``."""
