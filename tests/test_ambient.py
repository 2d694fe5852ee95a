"""A fit is the same whatever a user has set in torch, and leaves that as it was."""

from __future__ import annotations

import contextlib

import pytest
import torch
from small_parts import TINY, network
from torch import nn
from torch.utils.data import Dataset

from posthoc_inn import Interpreter


@contextlib.contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def meta():
    torch.set_default_device("meta")  # stands for a device that is not the model's
    try:
        yield
    finally:
        torch.set_default_device(None)


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": float64,
    "another default device": meta,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


def state():
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
    )


@pytest.fixture(scope="module")
def data():
    return torch.rand(40, 3, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def usual(data):
    fitted = interpreter(network()).fit(data)
    return fitted, fitted.sample(data[:2], n=2)


def interpreter(model, layer="3"):
    return Interpreter(model, layer, preset=TINY, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.mark.parametrize("name", STATES)
def test_what_is_set_changes_no_result_and_is_left_as_it_was(name, data, usual, tmp_path):
    model = network()
    with STATES[name]():
        before = state()
        fitted = interpreter(model).fit(data)
        assert state() == before
        samples = fitted.sample(data[:2], n=2)
        fitted.analyze("attack", (data[:2], torch.tensor([1, 2], device="cpu")))  # needs gradients
        fitted.save(tmp_path / "bundle")
        loaded = Interpreter.load(tmp_path / "bundle", model=model)
        again = loaded.sample(data[:2], n=2)
        assert state() == before
    assert fitted.metrics_["likelihood"] == usual[0].metrics_["likelihood"]
    assert torch.equal(samples, usual[1])
    assert torch.equal(again, usual[1])


class InTheUsersTypes(nn.Module):
    """Makes tensors of the default type in its forward pass, as a float64 model of its author's does."""

    def __init__(self):
        super().__init__()
        self.net = network().double()

    def forward(self, x):
        return self.net(x @ torch.eye(28))


class InTheUsersState(Dataset):
    """Notes what its user has set when an image is read."""

    def __init__(self, rows):
        self.rows, self.seen = rows, set()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.seen.add((torch.is_grad_enabled(), torch.get_default_dtype()))
        return self.rows[index]


def test_the_users_model_and_data_run_as_their_user_has_set_torch(data):
    with float64(), torch.no_grad():
        seen = InTheUsersState(data.double())
        fitted = interpreter(InTheUsersTypes(), "net.3").fit(seen)
        assert fitted.sample(data[:2].double(), n=1).dtype == torch.float32
    assert seen.seen == {(False, torch.float64)}
