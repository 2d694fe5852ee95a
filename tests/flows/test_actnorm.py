from __future__ import annotations

import numpy as np
import pytest
import torch

from posthoc_inn.errors import ConfigError, DataError, NotFittedError, ShapeError
from posthoc_inn.flows import ActNorm


@pytest.fixture
def x():
    return torch.randn(300, 5, dtype=torch.float64) * torch.tensor([1e-3, 1, 5, 1e3, 2]) + torch.arange(5)


def test_the_output_is_standardised_with_the_biased_deviation(x):
    norm = ActNorm(5).double()
    norm.initialize(x)
    y, log_det = norm(x)
    expected = (x.numpy() - x.numpy().mean(0)) / (x.numpy().std(0, ddof=0) + 1e-6)
    np.testing.assert_allclose(y.detach().numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(log_det.detach().numpy(), -np.log(x.numpy().std(0) + 1e-6).sum().repeat(300))
    torch.testing.assert_close(norm.inverse(y), x)


def test_two_rows_are_enough_and_one_is_an_error():
    norm = ActNorm(2)
    with pytest.raises(ShapeError, match=r"got 1 row .*at least 2.*larger batch"):
        norm.initialize(torch.ones(1, 2))
    norm.initialize(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    torch.testing.assert_close(norm(torch.tensor([[0.0, 5.0]]))[0], torch.tensor([[-1.0, 1.0]]))


def test_a_constant_feature_is_only_shifted():
    norm = ActNorm(2)
    norm.initialize(torch.stack([torch.full((8,), 3.0), torch.arange(8.0)], dim=1))
    y, log_det = norm(torch.tensor([[3.0, 3.5], [4.0, 3.5]]))
    torch.testing.assert_close(y, torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert log_det.isfinite().all()


def test_statistics_survive_a_large_mean_in_float32():
    norm = ActNorm(1)
    x = 1e4 + torch.arange(2000.0).reshape(-1, 1) / 1000
    norm.initialize(x)
    assert norm(x)[0].std(unbiased=False).item() == pytest.approx(1, rel=1e-2)


def test_leading_dimensions_count_as_rows(x):
    norm, other = ActNorm(5).double(), ActNorm(5).double()
    norm.initialize(x)
    other.initialize(x.reshape(30, 10, 5))
    torch.testing.assert_close(norm.shift, other.shift)
    assert other(x.reshape(30, 10, 5))[1].shape == (30, 10)


def test_it_is_set_once_unless_forced(x):
    norm = ActNorm(5).double()
    norm.initialize(x)
    with pytest.raises(ConfigError, match=r"force=True"):
        norm.initialize(x * 2)
    norm.initialize(x * 2, force=True)
    assert norm(x * 2)[0].std(unbiased=False).item() == pytest.approx(1, rel=1e-3)


def test_unusable_data_are_refused(x):
    with pytest.raises(ShapeError, match=r"accepted is \(\.\.\., 4\)"):
        ActNorm(4).initialize(x)
    with pytest.raises(DataError, match=r"300 of 300 rows"):
        ActNorm(5).initialize(x.where(torch.arange(5) != 2, torch.inf))


def test_before_initialisation_it_refuses_both_directions(x):
    norm = ActNorm(5)
    for call in (norm, norm.inverse):
        with pytest.raises(NotFittedError, match=r"initialize"):
            call(x.float())


def test_loading_an_uninitialised_state_is_noticed(x):
    norm = ActNorm(5)
    norm.initialize(x)
    norm(x.float())
    norm.load_state_dict(ActNorm(5).state_dict())
    assert not norm.is_initialized
    with pytest.raises(NotFittedError, match=r"initialize"):
        norm(x.float())
