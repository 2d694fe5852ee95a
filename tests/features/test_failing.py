"""What a user is told when their own model fails."""

import pytest
import torch
from torch import nn

from posthoc_inn import ConfigError, Interpreter, LayerExtractor, ModelError, list_layers
from posthoc_inn.features.failing import MAX_WORDS

IMAGES = torch.rand(3, 3, 28, 28)


def body(channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 5)).eval()


class Calling(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.layer = body()
        self._forward = forward

    def forward(self, x, *args, **kwargs):
        return self._forward(self.layer, x, *args, **kwargs)


def of_another_size(layer, x):
    if x.shape[-1] != 224:
        raise AssertionError("224 pixels, please")
    return layer(x)


def with_metadata(layer, x, age):
    return layer(x) + age


def talkative(layer, x):
    raise RuntimeError("no\n" + "very " * 500)


class Headless(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = body()


@pytest.mark.parametrize(
    ("model", "images", "parts"),
    [
        (body(), IMAGES[:, :1], ["float32 (3, 1, 28, 28)", "to have 3 channels", "It takes 3 channels"]),
        (body(), IMAGES[..., :20], ["(3, 3, 28, 20)", "Is this the size"]),
        (body().half(), IMAGES, ["float32", "number type of its weights (float16)"]),
        (Calling(of_another_size), IMAGES, ["(3, 3, 28, 28)", "AssertionError: 224 pixels, please"]),
        (Calling(with_metadata), IMAGES, ["'age'", "wrap it in a module"]),
        (Headless(), IMAGES, ["forward"]),
    ],
    ids=["channels", "size", "dtype", "assertion", "two inputs", "no forward"],
)
def test_a_models_own_error_becomes_a_line_with_what_it_got_and_what_to_do(model, images, parts):
    layer = "0" if isinstance(model, nn.Sequential) else "layer.0"
    for call in (
        LayerExtractor(model, layer).features,
        LayerExtractor(model, layer).predict,
        LayerExtractor(model, layer).probe,
        lambda x: list_layers(model, x),
    ):
        with pytest.raises(ModelError) as raised:
            call(images)
        text = str(raised.value)
        assert "\n" not in text
        assert all(part in text for part in parts), text
        assert raised.value.__cause__ is not None


def test_a_models_long_words_are_cut():
    with pytest.raises(ModelError) as raised:
        LayerExtractor(Calling(talkative), "layer.0").predict(IMAGES)
    assert len(str(raised.value)) < MAX_WORDS + 250


def test_memory_errors_stay_what_they_are():
    def greedy(layer, x):
        raise MemoryError("all gone")

    with pytest.raises(MemoryError, match="all gone"):
        LayerExtractor(Calling(greedy), "layer.0").predict(IMAGES)


def test_weights_on_the_meta_device_are_named():
    with pytest.raises(ConfigError, match=r"4 tensors on the meta device.*0\.weight"):
        Interpreter(body().to("meta"), "0").fit(IMAGES.repeat(10, 1, 1, 1) * torch.rand(30, 1, 1, 1))
