"""Bags of embeddings: HDF5 files, packed zarr stores, verification, import and export."""

from features.bags.bag import Bag
from features.bags.h5 import read_bag, write_bag
from features.bags.store import open_bags

__all__ = ["Bag", "open_bags", "read_bag", "write_bag"]
