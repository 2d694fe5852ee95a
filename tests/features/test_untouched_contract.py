"""The untouched-model contract: every kind of layer, every way out, train and eval."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posthoc_inn.errors import ModelError
from posthoc_inn.features import LayerExtractor, list_layers, untouched
from posthoc_inn.testing.models import TINY_MODELS, tiny_model


class Planned(Exception):
    """Raised on purpose."""


def images_of(inputs):
    return inputs[0] if isinstance(inputs, tuple) else inputs


def prepared(name, mode):
    model, inputs = tiny_model(name)
    if mode == "mixed":
        model.train()
        for number, module in enumerate(model.modules()):
            module.training = number % 2 == 0
    else:
        model.train(mode == "train")
    for number, weight in enumerate(model.parameters()):
        weight.requires_grad_(number % 3 != 0)
        if number % 2:
            weight.grad = torch.full_like(weight, 0.25)
    return model, inputs


def hooks_left(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, kind)) for m in model.modules() for kind in kinds)


def use(extractor, inputs, *, can_resume=True):
    """Do everything that can be done with an extractor, with gradients."""
    images = images_of(inputs).clone().requires_grad_()
    given = (images, *inputs[1:]) if isinstance(inputs, tuple) else images
    z, prediction = extractor.features_and_prediction(given)
    (z.sum() + prediction.sum()).backward()
    assert images.grad is not None
    z = z.detach().requires_grad_()
    extractor.resume(inputs, z).sum().backward()
    extractor.predict(inputs)
    extractor.probe(inputs)


def normal_exit(model, extractor, inputs):
    use(extractor, inputs)
    list_layers(model, inputs)


def exception_in_the_layer(model, extractor, inputs):
    def fail(*_):
        raise Planned

    layer = extractor._module
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        handle = register(fail)
        try:
            for call in (extractor.features, extractor.predict, extractor.probe, lambda x: list_layers(model, x)):
                with pytest.raises(ModelError, match="Planned") as raised:
                    call(inputs)
                assert isinstance(raised.value.__cause__, Planned)
        finally:
            handle.remove()


def exception_in_the_caller(model, extractor, inputs):
    def body():
        z = extractor.features(inputs)
        extractor.resume(inputs, z)
        raise Planned

    with pytest.raises(Planned):
        body()
    with pytest.raises(ValueError, match="z has shape"):
        extractor.resume(inputs, torch.zeros(1, 1))


def nested_use(model, extractor, inputs):
    twin = LayerExtractor(model, extractor.layer, **{k: v for k, v in extractor.options.items() if k != "layer"})
    inner = []

    def look_again(*_):
        # A hook of the user's asks for the same layer of the same model in the middle of a pass.
        if not inner:
            inner.append(None)
            inner.append(twin.features(inputs))

    before = extractor.features(inputs)
    handle = next(iter(model.children())).register_forward_hook(look_again)
    try:
        outer = extractor.features(inputs)
    finally:
        handle.remove()
    assert torch.equal(outer, before)
    assert len(inner) == 2
    assert torch.equal(inner[1], before)


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize(
    "scenario", [normal_exit, exception_in_the_layer, exception_in_the_caller, nested_use], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_model_is_left_alone(name, scenario, mode):
    model, inputs = prepared(name, mode)
    kind = TINY_MODELS[name]
    copies = [t.clone() for t in (images_of(inputs),)]
    with untouched(model):
        scenario(model, LayerExtractor(model, kind.layer, **kind.options), inputs)
    assert hooks_left(model) == 0
    assert torch.equal(images_of(inputs), copies[0])


def test_an_error_raised_by_the_model_itself_comes_out_as_the_cause_and_leaves_no_trace():
    model, inputs = tiny_model("raising")
    model.fragile.raises = True
    with untouched(model):
        for call in (LayerExtractor(model, "fragile").features, LayerExtractor(model, "head").probe):
            with pytest.raises(ModelError, match="raised inside the layer") as raised:
                call(inputs)
            assert isinstance(raised.value.__cause__, ArithmeticError)


def test_only_one_forward_hook_is_there_during_a_call_and_all_modules_are_in_eval_mode():
    model, inputs = prepared("training", "train")
    seen = []
    model.head.register_forward_hook(
        lambda *_: seen.append((hooks_left(model), any(m.training for m in model.modules())))
    )
    LayerExtractor(model, "bn").features(inputs)
    assert seen == [(2, False)]


def test_a_backward_pass_from_z_adds_nothing_to_weights_even_to_those_of_a_recurrent_layer():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 5, batch_first=True)
            self.head = nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    model, x = Reader(), torch.rand(2, 3, 8, requires_grad=True)
    with untouched(model):
        LayerExtractor(model, "lstm", output=0).features(x).sum().backward()
        LayerExtractor(model, "head").predict(x).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert x.grad.abs().sum() > 0


def test_a_backward_pass_of_the_user_that_is_pending_still_works():
    model, inputs = tiny_model("training")
    model.eval()
    loss = model(inputs).sum()
    LayerExtractor(model, "bn").features(inputs)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_hooks_of_the_user_on_weights_still_fire_after_gradients_were_taken():
    model, inputs = tiny_model("plain")
    fired = []
    model.head.weight.register_hook(lambda g: fired.append("tensor"))
    model.head.weight.register_post_accumulate_grad_hook(lambda p: fired.append("accumulated"))
    LayerExtractor(model, "head").features(inputs.requires_grad_()).sum().backward()
    assert fired == []
    model(inputs).sum().backward()
    assert fired == ["tensor", "accumulated"]


def test_weights_that_an_embedding_renormalises_in_its_forward_pass_stay():
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1), nn.Flatten(), nn.Linear(6, 2))
    with untouched(model):
        z = LayerExtractor(model, "0").features(torch.tensor([[0, 1], [2, 3]]))
    assert z.norm(dim=-1).max() <= 0.1 + 1e-6
    assert model[0].weight.norm(dim=-1).max() > 0.1


def test_threads_that_use_one_model_at_once_get_what_they_would_get_alone():
    from concurrent.futures import ThreadPoolExecutor

    model, inputs = tiny_model("skip-inside")
    names = ["stem", "block1", "block1.conv1", "block2.bn1"] * 4
    alone = {name: LayerExtractor(model, name).features(inputs) for name in names}
    with untouched(model), ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda name: LayerExtractor(model, name).features(inputs), names))
    assert all(torch.equal(z, alone[name]) for name, z in zip(names, together, strict=True))


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "mobilenet_v3_small"])
def test_a_torchvision_classifier_is_left_alone(architecture):
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.get_model(architecture, weights=None)
    check_classifier(model, torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("architecture", ["test_vit", "levit_128s"])
def test_a_timm_architecture_is_left_alone(architecture):
    timm = pytest.importorskip("timm")
    side = 160 if architecture == "test_vit" else 224
    check_classifier(timm.create_model(architecture, pretrained=False), torch.rand(2, 3, side, side))


def check_classifier(model, images):
    model.train()
    with untouched(model):
        layers = [i for i in list_layers(model, images) if i.shape and i.calls == 1 and i.name != "output"]
        cuts = [i for i in layers if i.is_cut]
        extractor = LayerExtractor(model, cuts[len(cuts) // 2].name)
        z, prediction = extractor.features_and_prediction(images)
        swapped = extractor.resume(images, z.roll(1, 0))
    torch.testing.assert_close(swapped, prediction.roll(1, 0))
    assert hooks_left(model) == 0
