from __future__ import annotations

import pytest
import torch
from torch import nn

from posthoc_inn.builtin.small_cnn import SmallCNN
from posthoc_inn.config import ImageSpec, TrainConfig
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.errors import DataError
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import train
from posthoc_inn.training.classifier import ClassifierTask, classes_of, evened, labelled_rows, wake_last_layer
from posthoc_inn.weights import seeded_init

SPEC = ImageSpec(mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def rows():
    images, labels = ColorDigits().tensors()
    keep = labels < 2
    batch = {"images": images[keep], "labels": labels[keep]}
    return labelled_rows([batch], Cache())


def net():
    with seeded_init():
        return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(147, 16), nn.ReLU(), nn.Linear(16, 2))


def test_a_classifier_learns_digits_in_random_colours(rows):
    with seeded_init():
        model = SmallCNN(2, width=8)
    task = ClassifierTask(model, SPEC, rows, rows, batch_size=32, steps=200, seed=0)
    history = train(task, TrainConfig(steps=200, batch_size=32, lr=1e-2, eval_every=200, patience=0))
    assert history.rows[-1]["accuracy"] > 0.9
    assert not model.training


def test_batches_depend_on_seed_and_step_alone(rows):
    def batch(step, seed=0):
        task = ClassifierTask(net(), SPEC, rows, rows, batch_size=8, steps=100, seed=seed)
        return task.batch(step, torch.Generator())

    assert all(torch.equal(a, b) for a, b in zip(batch(7), batch(7), strict=True))
    assert not torch.equal(batch(7)[0], batch(8)[0])
    assert not torch.equal(batch(7)[0], batch(7, seed=1)[0])


def test_images_are_evened_out_at_first_and_shown_as_they_are_in_the_end(rows):
    task = ClassifierTask(net(), SPEC, rows, rows, batch_size=8, steps=100, seed=0)
    shares = [float(task.batch(step, torch.Generator())[2]) for step in (0, 10, 30, 60, 99)]
    assert shares[:2] == [1.0, 1.0]
    assert 0 < shares[2] < 1
    assert shares[3:] == [0.0, 0.0]


def test_the_colour_of_a_stroke_does_not_show_when_evened_out():
    gray = torch.zeros(6, 6)
    gray[1:5, 2] = 1
    one = torch.stack([0.2 + 0.5 * gray] * 3)
    other = torch.stack([0.9 - 0.6 * gray, 0.8 - 0.3 * gray, 0.1 + 0.1 * gray])
    assert torch.allclose(evened(one[None]), evened(other[None]), atol=0.02)


def test_a_blank_image_stays_finite_when_evened_out():
    assert torch.isfinite(evened(torch.full((1, 3, 4, 4), 0.3))).all()


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (None, "none"),
        ({"digit": torch.zeros(2)}, "names digit"),
        (torch.zeros(2, 3), "other labels"),
        (torch.tensor([-1, 0]), "other labels"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, told):
    with pytest.raises(DataError, match=rf"the data has {told}\. Give the model's weights"):
        classes_of(labels)


def test_a_final_relu_does_not_leave_classes_dead():
    with seeded_init(3):
        model = nn.Sequential(nn.Flatten(), nn.Linear(147, 10), nn.ReLU())
    images = torch.rand(64, 3, 7, 7)
    assert bool((model(images) == 0).all(0).any())
    wake_last_layer(model, 2.0)
    assert not bool((model(images) == 0).all(0).any())
