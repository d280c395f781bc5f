"""Atomic files, CSV tables, paths, text, hardware, torch files and image headers."""
