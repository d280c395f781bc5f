from __future__ import annotations

import socket

import pytest

from features.errors import MilError
from features.parallel.ray_cluster import ray_connection


def test_a_cluster_that_is_not_there_is_told() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'mil-slides[ray]'")
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"127.0.0.1:{asked.getsockname()[1]}"
        with (
            pytest.raises(MilError, match=f"Ray cluster {address}: no connection"),
            ray_connection(address),
        ):
            pass
