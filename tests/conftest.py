"""Shared fixtures: every test starts from the same global seed and must leave torch's switches alone."""

from __future__ import annotations

import pytest
import torch


def switches():
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


@pytest.fixture(autouse=True)
def _torch_state_is_left_alone():
    before = switches()
    torch.manual_seed(0)
    yield
    assert switches() == before, "a test or the code under it changed a global torch switch"
