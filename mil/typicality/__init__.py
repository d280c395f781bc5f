"""Typicality: how much a patient is like the training patients, as a conformal p-value."""

from mil.typicality.reference import Typicality, TypicalityReference
from mil.typicality.storage import read_reference, write_reference

__all__ = ["Typicality", "TypicalityReference", "read_reference", "write_reference"]
