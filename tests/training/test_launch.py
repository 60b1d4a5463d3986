"""What is an error of the transport between processes, and what is not."""

from __future__ import annotations

import pytest
import torch.distributed

from vlp.training.launch import told_by_transport

CLOSED = "[/build/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:9935. This is typically caused"


@pytest.mark.parametrize(
    "error", [RuntimeError(CLOSED), torch.distributed.DistNetworkError("failed to recv, got 0 bytes")]
)
def test_errors_of_the_transport(error: Exception) -> None:
    assert "another process of this run has ended" in str(told_by_transport(error))


def test_the_place_in_the_transports_source_is_left_out() -> None:
    assert str(told_by_transport(RuntimeError(CLOSED))).endswith("(here: Connection closed by peer [127.0.0.1]:9935)")


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError("Connection refused"), RuntimeError("mat1 and mat2"), ValueError("gloo")]
)
def test_other_errors(error: Exception) -> None:
    """As of a store that samples come from."""
    assert told_by_transport(error) is None
