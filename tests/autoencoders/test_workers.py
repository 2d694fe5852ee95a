"""Pictures made by several processes: the same ones, in their order, sooner; what cannot work is said."""

import os
import threading
import time

import numpy as np
import pytest
import torch

from posthoc_inn import ConfigError, DataError, GivenGenerator

SECONDS = 0.05


def slow(w):
    """Pictures that tell which latents they are of, and take their time."""
    time.sleep(SECONDS * len(w))
    return torch.sigmoid(w[:, :1, None, None].expand(-1, 1, 8, 8))


def test_workers_make_the_same_pictures_in_their_order_and_sooner():
    generator = GivenGenerator(slow, 2, channels=1)
    alone, shared = generator.draws(64), generator.draws(64, workers=2)
    shared.images(range(2))
    seconds = []
    for draws in (alone, shared):
        started = time.perf_counter()
        draws.images(range(32, 64))
        seconds.append(time.perf_counter() - started)
    assert torch.equal(alone.images(range(64)), shared.images(range(64)))
    assert seconds[1] < 0.8 * seconds[0]
    assert shared.seconds_each() < 0.8 * alone.seconds_each()


def test_a_generator_that_cannot_be_sent_is_told_before_any_process_starts():
    lock = threading.Lock()

    def decode(w):
        with lock:
            return torch.zeros(len(w), 1, 8, 8)

    draws = GivenGenerator(decode, 2, channels=1).draws(4, workers=2)
    with pytest.raises(ConfigError, match="workers=2 needs a generator that can be sent"):
        draws.images(range(4))


def test_a_worker_that_is_killed_ends_all_with_one_line():
    parent = os.getpid()

    def decode(w):
        if os.getpid() != parent:
            os._exit(9)
        return np.zeros((len(w), 1, 8, 8))

    draws = GivenGenerator(decode, 2, channels=1).draws(4, workers=2)
    with pytest.raises(DataError, match="2 copies of the generator may not fit into memory"):
        draws.images(range(4))


def test_workers_are_counted():
    with pytest.raises(ConfigError, match="workers must be at least 1, got 0"):
        GivenGenerator(slow, 2, channels=1).draws(4, workers=0)
