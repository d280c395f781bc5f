"""Readers, one module per library."""
