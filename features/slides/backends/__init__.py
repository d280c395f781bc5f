"""Readers, one module per library."""

import logging

# It describes damage line by line, and the errors and warnings of the readers say what matters.
logging.getLogger("tifffile").addHandler(logging.NullHandler())
