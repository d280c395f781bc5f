"""Addresses without a cluster, not in the module whose tests connect this process to one."""

from __future__ import annotations

import socket

import pytest

from features.errors import MilError
from features.parallel.ray_cluster import ray_connection


def test_an_address_without_a_cluster_is_refused() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # Bound but not listening.
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with (
            pytest.raises(MilError, match=f"Ray cluster {address}: no connection"),
            ray_connection(address),
        ):
            pass
