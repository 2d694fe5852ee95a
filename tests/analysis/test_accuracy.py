from __future__ import annotations

import pytest
import torch

from posthoc_inn.analysis import model_accuracy
from posthoc_inn.images import BatchSource

LABELS = torch.tensor([0, 1, 2, 2, 2, 1])


def source(labels=LABELS, **options):
    """Images whose first pixel is their class, in tenths."""
    images = torch.zeros(len(LABELS), 1, 8, 8)
    images[:, 0, 0, 0] = LABELS / 10
    data = images if labels is None else (images, labels)
    return BatchSource(data, batch_size=2, **options)


def right(images, width=3):
    return torch.eye(width)[(images[:, 0, 0, 0] * 10).round().long()]


def always_first(images):
    return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(images), 3)


def test_the_share_of_right_answers_stands_beside_chance():
    assert model_accuracy(right, source()) == {"accuracy": 1.0, "chance": 0.5, "images": 6}
    assert model_accuracy(always_first, source()) == {"accuracy": 1 / 6, "chance": 0.5, "images": 6}


def test_no_more_images_are_looked_at_than_asked_for():
    seen = []

    def predict(images):
        seen.append(len(images))
        return right(images)

    assert model_accuracy(predict, source(), limit=3, classes=3)["images"] == 3
    assert sum(seen) == 3


@pytest.mark.parametrize(
    ("classes", "width", "is_measured"),
    [(0, 3, True), (3, 3, True), (0, 4, False), (4, 4, True), (4, 3, False), (None, 4, True), (None, 3, True)],
)
def test_a_model_with_other_classes_is_not_measured(classes, width, is_measured):
    found = model_accuracy(lambda images: right(images, width), source(), classes=classes)
    assert (found is not None) is is_measured


@pytest.mark.parametrize("classes", [0, None])
def test_a_model_without_a_score_for_a_label_is_not_measured(classes):
    assert model_accuracy(lambda images: torch.zeros(len(images), 2), source(), classes=classes) is None


@pytest.mark.parametrize(
    "predict", [lambda x: x, lambda x: x.flatten(1)[:, :1], lambda x: x.flatten(1)[:, 0]], ids=["maps", "one", "scalar"]
)
def test_a_model_that_is_no_classifier_is_not_measured(predict):
    assert model_accuracy(predict, source()) is None


@pytest.mark.parametrize("labels", [None, LABELS.float(), LABELS - 1], ids=["none", "numbers", "negative"])
@pytest.mark.parametrize("classes", [0, None])
def test_images_without_classes_are_not_measured(labels, classes):
    assert model_accuracy(right, source(labels), classes=classes) is None


def test_of_several_labels_the_first_class_is_taken_where_any_model_is_asked():
    table = {"size": LABELS.float(), "kind": LABELS, "other": LABELS.flip(0)}
    assert model_accuracy(right, source(table), classes=None)["accuracy"] == 1
    assert model_accuracy(right, source(table)) is None
