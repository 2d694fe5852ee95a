"""Derived seeds: the same everywhere, and different for everything."""

import os
import subprocess
import sys

import torch

from posthoc_inn.seeds import derived

KNOWN = {
    (0,): 7896617691693857887,
    (0, "batch", 0): 4074717166608317382,
    (7, "order", 3): 949240232832085995,
    (-1, "look"): 97160161297494807,
    (2**63, "t"): 8760817751707438266,
}


def test_seeds_are_the_same_on_every_machine_and_in_every_process():
    for (seed, *purpose), expected in KNOWN.items():
        assert derived(seed, *purpose) == expected
    code = "from posthoc_inn.seeds import derived; print(derived(3, 'batch', 7))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": hashing},
        ).stdout.strip()
        for hashing in ("1", "2")
    }
    assert found == {str(derived(3, "batch", 7))}


def test_neighbouring_seeds_steps_and_purposes_do_not_meet():
    made = {derived(seed, name, step) for seed in range(-2, 20) for name in ("batch", "step") for step in range(50)}
    assert len(made) == 22 * 2 * 50
    assert len({derived(0), derived(0, 0), derived(0, 0, 0), derived(0, "a", "b"), derived(0, "ab")}) == 5
    assert derived(2**32 + 1, 5) != derived(1, 1, 5), "a wide seed and a longer purpose are different things"


def test_every_generator_takes_them():
    for seed in (0, -1, 2**63):
        made = derived(seed, "noise")
        assert 0 <= made < 2**63
        torch.Generator().manual_seed(made)
