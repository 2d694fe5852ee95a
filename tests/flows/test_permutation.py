from __future__ import annotations

import pytest
import torch

from posthoc_inn.flows import Permutation


@pytest.mark.parametrize("dim", [1, 2, 7, 64])
def test_forward_permutes_and_inverse_undoes_it(dim):
    shuffle = Permutation(dim, seed=4)
    x = torch.randn(3, 2, dim)
    y, log_det = shuffle(x)
    assert torch.equal(y.sort(-1).values, x.sort(-1).values)
    assert torch.equal(shuffle.inverse(y), x)
    assert log_det.shape == (3, 2)
    assert not log_det.any()


def test_the_seed_decides_it_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first = Permutation(64, seed=1).permutation
    torch.manual_seed(5)
    torch.set_rng_state(before)
    assert torch.equal(Permutation(64, seed=1).permutation, first)
    assert not torch.equal(Permutation(64, seed=2).permutation, first)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_permutation_brings_its_inverse():
    source, shuffle = Permutation(9, seed=1), Permutation(9, seed=2)
    assert list(source.state_dict()) == ["permutation"]
    shuffle.load_state_dict(source.state_dict())
    x = torch.randn(4, 9)
    assert torch.equal(shuffle(x)[0], source(x)[0])
    assert torch.equal(shuffle.inverse(shuffle(x)[0]), x)


@pytest.mark.parametrize("bad", [[0, 0, 1], [0, 1, 3], [-1, 0, 1], [0.0, 1.0, 2.0]])
def test_what_is_no_permutation_is_not_loaded(bad):
    shuffle = Permutation(3, seed=0)
    with pytest.raises(RuntimeError, match=r"does not hold each of 0 to 2 once"):
        shuffle.load_state_dict({"permutation": torch.tensor(bad)})
