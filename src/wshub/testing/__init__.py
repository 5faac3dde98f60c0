"""Tests for the authors of extensions: ``wshub.testing.check_broker`` proves a broker."""
