"""Φ and Ψ of models of every kind, against slow references, and each error."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from posthoc_inn.errors import ConfigError, LayerNotFoundError, ShapeError
from posthoc_inn.features import LayerExtractor, untouched
from posthoc_inn.protocols import FeatureExtractor
from posthoc_inn.testing.models import TINY_MODELS, PlainNet, SkipNet, TokenNet, tiny_model


def extractor_of(name, **options):
    model, inputs = tiny_model(name)
    kind = TINY_MODELS[name]
    return LayerExtractor(model, kind.layer, **{**kind.options, **options}), inputs


def plainly(model, inputs):
    """What the model itself says in eval mode, from a copy of it."""
    twin = copy.deepcopy(model).eval()
    given = [t.clone() for t in inputs] if isinstance(inputs, tuple) else [inputs.clone()]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        out = twin(*given)
    return out["logits"] if isinstance(out, dict) else out


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_probe_finds_the_shape_of_z_and_whether_the_layer_is_a_cut(name):
    extractor, inputs = extractor_of(name)
    kind = TINY_MODELS[name]
    probe = extractor.probe(inputs)
    assert (probe.z_shape, probe.is_cut, probe.output_shape) == (kind.z_shape, kind.is_cut, (4,))
    assert bool(probe.around) is not kind.is_cut
    assert extractor.features(inputs).shape[1:] == kind.z_shape


@pytest.mark.parametrize("name", TINY_MODELS)
def test_resuming_from_z_gives_the_models_own_prediction(name):
    extractor, inputs = extractor_of(name)
    z, prediction = extractor.features_and_prediction(inputs)
    torch.testing.assert_close(prediction, plainly(extractor.model, inputs))
    torch.testing.assert_close(extractor.resume(inputs, z), prediction)
    torch.testing.assert_close(extractor.predict(inputs), prediction)


@pytest.mark.parametrize("name", [n for n, kind in TINY_MODELS.items() if kind.is_cut and n != "hoarder"])
def test_at_a_true_cut_the_z_of_other_images_gives_their_prediction(name):
    extractor, inputs = extractor_of(name)
    z, prediction = extractor.features_and_prediction(inputs)
    torch.testing.assert_close(extractor.resume(inputs, z.roll(1, 0)), prediction.roll(1, 0))


def test_z_equals_what_the_layers_compute_one_after_another():
    model, x = tiny_model("plain")
    by_hand = torch.relu(nn.functional.conv2d(x, model.features[0].weight, model.features[0].bias, 2, 1))
    torch.testing.assert_close(LayerExtractor(model, "features.1").features(x), by_hand.detach())
    z = LayerExtractor(model, "features").features(x)
    by_hand = nn.functional.linear(z.relu().flatten(1), model.head.weight, model.head.bias)
    torch.testing.assert_close(LayerExtractor(model, "features").resume(x, z), by_hand.detach())


def test_it_is_a_feature_extractor():
    assert isinstance(extractor_of("plain")[0], FeatureExtractor)


def test_its_options_build_it_again():
    extractor, inputs = extractor_of("tokens-class")
    again = LayerExtractor(extractor.model, **extractor.to_dict())
    assert torch.equal(again.features(inputs), extractor.features(inputs))
    assert repr(again) == "LayerExtractor(TokenNet, layer='norm', tokens='class')"


def test_an_activation_in_place_after_the_layer_does_not_change_z():
    model, x = tiny_model("inplace")
    z = LayerExtractor(model, "conv").features(x)
    torch.testing.assert_close(z, model.conv(x - 0.5).detach())
    kept = z.clone()
    LayerExtractor(model, "conv").resume(x, z)
    assert torch.equal(z, kept)


def test_gradients_reach_pixels_and_z_and_equal_finite_differences():
    model, x = tiny_model("tokens")
    model.double()
    extractor = LayerExtractor(model, "encoder.layers.0")
    x = x[:1].double()
    assert torch.autograd.gradcheck(lambda p: extractor.features(p).sum(-1), x.clone().requires_grad_(), fast_mode=True)
    z = extractor.features(x)
    assert torch.autograd.gradcheck(lambda z: extractor.resume(x, z), z.requires_grad_())


def test_without_inputs_that_require_gradients_none_are_recorded():
    extractor, x = extractor_of("plain")
    assert not extractor.features(x).requires_grad
    assert extractor.features(x.requires_grad_()).requires_grad
    with torch.no_grad():
        assert not extractor.features(x).requires_grad


def test_dropout_and_batch_statistics_play_no_part_in_train_mode():
    extractor, x = extractor_of("training")
    extractor.model.train()
    z = extractor.features(x)
    assert torch.equal(z, extractor.features(x))
    torch.testing.assert_close(z[:1], extractor.features(x[:1]))


def test_every_call_of_a_reused_module_can_be_chosen():
    model, x = tiny_model("reused")
    h = model.stem(x.flatten(1))
    by_hand = []
    for _ in range(3):
        by_hand.append(model.shared(h).detach())
        h = model.act(model.shared(h))
    for call in range(-3, 3):
        torch.testing.assert_close(LayerExtractor(model, "shared", call=call).features(x), by_hand[call])
    early, late = (LayerExtractor(model, "shared", call=call) for call in (0, -1))
    torch.testing.assert_close(early.resume(x, by_hand[2]), late.predict(x) * 0 + early.resume(x, by_hand[2]))
    torch.testing.assert_close(late.resume(x * 0, by_hand[2]), late.predict(x))


def test_a_module_called_several_times_without_a_choice_says_which_calls_there_are():
    model, x = tiny_model("reused")
    with pytest.raises(ConfigError, match=r"called 3 times .* pass call=0 to 2.*call=0 \(B, 6\), call=1 \(B, 6\)"):
        LayerExtractor(model, "shared").features(x)
    with pytest.raises(ConfigError, match="there is no call=3"):
        LayerExtractor(model, "shared", call=3).features(x)
    with pytest.raises(ConfigError, match="there is no call=-4"):
        LayerExtractor(model, "shared", call=-4).features(x)
    with pytest.raises(ConfigError, match="called 1 time in one pass, and there is no call=1"):
        LayerExtractor(model, "stem", call=1).features(x)


@pytest.mark.parametrize(
    ("name", "output", "shape"),
    [
        ("tuple", 0, (6, 4, 4)),
        ("tuple", 1, (6,)),
        ("tuple", -2, (6,)),
        ("dict", "maps", (6, 4, 4)),
        ("dict", 1, (6,)),
        ("dataclass", "maps", (6, 4, 4)),
        ("dataclass", "rest", (6,)),
        ("dataclass", "rest.pooled", (6,)),
    ],
)
def test_each_tensor_of_a_structured_output_can_be_chosen(name, output, shape):
    extractor, x = extractor_of(name, output=output)
    z = extractor.features(x)
    assert z.shape == (3, *shape)
    torch.testing.assert_close(extractor.resume(x, z), extractor.predict(x))
    assert not torch.allclose(extractor.resume(x, z + 1), extractor.predict(x))
    assert extractor.probe(x).is_cut is False


def test_several_tensors_without_a_choice_are_listed_with_their_shapes():
    with pytest.raises(ConfigError, match=r"output=0 \(B, 6, 4, 4\), output=1 \(B, 6\)\."):
        (lambda e, x: e.features(x))(*extractor_of("tuple", output=None))
    with pytest.raises(ConfigError, match=r"Dict?\[|dict\[maps, pooled, largest\] .*output='maps'"):
        (lambda e, x: e.features(x))(*extractor_of("dict", output=None))
    with pytest.raises(ConfigError, match=r"has no output='mask'; pass output='maps'"):
        (lambda e, x: e.features(x))(*extractor_of("dict", output="mask"))
    with pytest.raises(ConfigError, match="has no output=3; leave output out"):
        (lambda e, x: e.features(x))(*extractor_of("plain", output=3))


def test_an_output_of_integers_is_refused():
    with pytest.raises(ShapeError, match=r"returns torch.int64; floating-point .* Pass output=0"):
        (lambda e, x: e.features(x))(*extractor_of("tuple", output=2))


def test_a_layer_that_returns_no_tensor_is_refused():
    class Shape(nn.Module):
        def forward(self, x):
            return x.shape[0]

    class Net(PlainNet):
        def __init__(self):
            super().__init__()
            self.size = Shape()

        def forward(self, x):
            self.size(x)
            return super().forward(x)

    with pytest.raises(ShapeError, match="returns int, without a tensor"):
        LayerExtractor(Net(), "size").features(torch.rand(2, 3, 8, 8))


def test_a_dict_with_attributes_stays_what_it_is_when_resumed():
    class Output(OrderedDict):
        """A dict whose entries are attributes, too, as language-model libraries return."""

        def __getattr__(self, name):
            return self[name]

    class Layer(nn.Module):
        def forward(self, x):
            return Output(hidden=x * 2, pooled=x.mean(1))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Layer()

        def forward(self, x):
            out = self.layer(x)
            assert isinstance(out, Output)
            return Output(logits=out.hidden.sum(1, keepdim=True) + out.pooled[:, None], hidden=out.hidden)

    x = torch.rand(2, 3)
    extractor = LayerExtractor(Net(), "layer", output="hidden")
    torch.testing.assert_close(extractor.resume(x, x * 3), x.mul(3).sum(1, keepdim=True) + x.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("tokens", "reference"),
    [
        ("all", lambda t: t),
        ("class", lambda t: t[:, 0]),
        ("patches", lambda t: t[:, 1:]),
        ("mean", lambda t: t.sum(1) / 5),
    ],
)
def test_tokens_are_chosen(tokens, reference):
    model, x = tiny_model("tokens")
    everything = LayerExtractor(model, "encoder.layers.0").features(x)
    chosen = LayerExtractor(model, "encoder.layers.0", tokens=tokens).features(x)
    torch.testing.assert_close(chosen, reference(everything))


def test_resuming_a_class_token_keeps_the_patches_of_the_given_images():
    model, x = tiny_model("tokens")
    everything = LayerExtractor(model, "encoder.layers.0")
    only_class = LayerExtractor(model, "encoder.layers.0", tokens="class")
    mixed = everything.features(x)
    mixed[:, 0] = mixed[:, 0].roll(1, 0)
    torch.testing.assert_close(only_class.resume(x, only_class.features(x).roll(1, 0)), everything.resume(x, mixed))
    assert only_class.probe(x).is_cut is False


def test_the_number_of_prefix_tokens_is_the_models_own():
    model, x = tiny_model("tokens")
    model.num_prefix_tokens = 2
    assert LayerExtractor(model, "norm", tokens="patches").features(x).shape == (3, 3, 8)
    model.num_prefix_tokens = 0
    with pytest.raises(ShapeError, match="has no class token"):
        LayerExtractor(model, "norm", tokens="class").features(x)


def test_a_mean_of_tokens_cannot_be_resumed_and_says_so():
    model, x = tiny_model("tokens")
    extractor = LayerExtractor(model, "norm", tokens="mean")
    with pytest.raises(ConfigError, match="tokens='mean' cannot be resumed exactly"):
        extractor.resume(x, extractor.features(x))
    probe = extractor.probe(x)
    assert probe.is_cut is None
    assert "cannot be resumed" in probe.note


def test_tokens_of_a_layer_without_tokens_are_refused():
    model, x = tiny_model("tokens")
    with pytest.raises(ShapeError, match=r"tokens='class' needs tokens \(B, T, N\)"):
        LayerExtractor(model, "head", tokens="class").features(x)


def test_the_fast_path_of_transformer_layers_hides_no_layer():
    model, x = tiny_model("tokens")
    for layer in ("encoder", "encoder.layers.1", "encoder.layers.1.linear2", "encoder.layers.0.norm1"):
        extractor = LayerExtractor(model, layer)
        torch.testing.assert_close(extractor.resume(x, extractor.features(x)), extractor.predict(x))


def test_a_layer_whose_weights_are_used_without_a_call_names_the_module_around_it():
    model, x = tiny_model("tokens")
    with pytest.raises(LayerNotFoundError, match=r"never reached .*'encoder.layers.0.self_attn' around it"):
        LayerExtractor(model, "encoder.layers.0.self_attn.out_proj").features(x)


def test_a_layer_that_is_never_reached_says_so():
    model, x = tiny_model("unreached")
    for call in ("features", "probe"):
        with pytest.raises(
            LayerNotFoundError, match=r"Layer 'aux' \(Linear\) exists but is never reached .*Known: conv"
        ):
            getattr(LayerExtractor(model, "aux"), call)(x)
    with pytest.raises(LayerNotFoundError, match="a container that is not called itself"):
        LayerExtractor(TokenNet(), "encoder.layers").resume(x, x)


def test_an_unknown_layer_names_the_nearest():
    with pytest.raises(LayerNotFoundError, match=r"PlainNet has no layer 'feature.0'\. Did you mean 'features.0'"):
        LayerExtractor(PlainNet(), "feature.0")
    with pytest.raises(LayerNotFoundError, match=r"Only modules have names.*torch\.flatten"):
        LayerExtractor(PlainNet(), "zzzz")
    with pytest.raises(LayerNotFoundError, match="own output is layer='output'"):
        LayerExtractor(PlainNet(), "")


def test_all_wrong_arguments_are_reported_at_once():
    with pytest.raises(ConfigError, match=r"model must .* layer must .* output must .* call must .* tokens must"):
        LayerExtractor("resnet", 3, output=1.5, call=True, tokens="cls")


def test_z_of_another_shape_is_refused_with_what_is_accepted():
    extractor, x = extractor_of("plain")
    with pytest.raises(ShapeError, match=r"z has shape \(3, 6, 4, 5\); layer 'features.0' gives \(3, 6, 4, 4\)"):
        extractor.resume(x, torch.zeros(3, 6, 4, 5))
    with pytest.raises(ShapeError, match=r"inputs.repeat_interleave\(4, 0\)"):
        extractor.resume(x, torch.zeros(12, 6, 4, 4))
    with pytest.raises(ShapeError, match=r"floating-point tensor .* got torch\.int64"):
        extractor.resume(x, torch.zeros(3, 6, 4, 4, dtype=torch.long))
    with pytest.raises(ShapeError, match="got list"):
        extractor.resume(x, [1.0])
    assert extractor.resume(x, torch.zeros(3, 6, 4, 4, dtype=torch.float64)).dtype == torch.float32


def test_a_layer_without_the_batch_first_is_refused():
    class Windows(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 3)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.windows = Windows()

        def forward(self, x):
            return self.windows(x).reshape(len(x), -1)

    with pytest.raises(ShapeError, match=r"returns shape \(8, 3\) for 2 rows of input; the batch must come first"):
        LayerExtractor(Net(), "windows").features(torch.rand(2, 12))


def test_inputs_may_be_a_tuple_or_a_dict_and_nothing_else():
    model, (image, extra) = tiny_model("two-inputs")
    extractor = LayerExtractor(model, "conv")
    z = extractor.features((image, extra))
    assert torch.equal(z, extractor.features({"image": image, "extra": extra}))
    assert torch.equal(z, extractor.features([image, extra]))
    assert extractor.probe({"image": image, "extra": extra}).around == ("cat",)
    with pytest.raises(ShapeError, match=r"got ndarray. For an array, pass torch.as_tensor"):
        extractor.features(image.numpy())
    with pytest.raises(ShapeError, match="empty tuple"):
        extractor.features(())
    with pytest.raises(ShapeError, match=r"at least one row, got shape \(0, 3, 8, 8\)"):
        extractor.features(image[:0])


def test_a_prediction_among_several_results_must_be_chosen():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            h = self.layer(x)
            return h, h.sum(1)

    x = torch.rand(2, 3)
    with pytest.raises(ConfigError, match=r"The model returns tuple\[2\] .*prediction=0 \(B, 3\), prediction=1 \(B,\)"):
        LayerExtractor(Net(), "layer").predict(x)
    assert LayerExtractor(Net(), "layer", prediction=1).predict(x).shape == (2,)
    probe = LayerExtractor(Net(), "layer").probe(x)
    assert (probe.output_shape, probe.is_cut) == (None, True)
    assert "prediction=0" in probe.note


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["parallel", "compiled"]
)
def test_wrapped_models_are_looked_through(wrap):
    model, x = tiny_model("skip-whole")
    expected = LayerExtractor(model, "block1").features(x)
    wrapped = wrap(model)
    with untouched(wrapped):
        assert torch.equal(LayerExtractor(wrapped, "block1").features(x), expected)
        assert torch.equal(LayerExtractor(wrapped, "module.block1").features(x), expected)


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_a_layer_in_a_part_that_is_compiled_and_has_run_already_is_reached():
    model, x = tiny_model("skip-whole")
    model.eval()
    expected = LayerExtractor(model, "block1.bn1").features(x)
    model.block1 = torch.compile(model.block1, backend="eager")
    with torch.no_grad():
        model(x)
    assert torch.equal(LayerExtractor(model, "block1.bn1").features(x), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_inside_is_refused_and_beside_it_works():
    model, x = tiny_model("plain")
    model.eval()
    traced = torch.jit.trace(model, x)
    for scripted in (torch.jit.script(model), traced):
        with pytest.raises(LayerNotFoundError, match="inside TorchScript"):
            LayerExtractor(scripted, "features.0")
        with untouched(scripted):
            torch.testing.assert_close(LayerExtractor(scripted, "output").features(x), plainly(model, x))
    model.features = torch.jit.script(model.features)
    with untouched(model):
        extractor = LayerExtractor(model, "head")
        z = extractor.features(x.requires_grad_())
        z.sum().backward()
        torch.testing.assert_close(extractor.resume(x, z), z)
    with pytest.raises(LayerNotFoundError, match="inside TorchScript"):
        LayerExtractor(model, "features")


def test_models_and_inputs_made_in_inference_mode_work():
    with torch.inference_mode():
        model, x = tiny_model("skip-whole")
    extractor = LayerExtractor(model, "block1")
    with untouched(model):
        z = extractor.features(x)
        x = x.clone().requires_grad_()
        extractor.features(x).sum().backward()
        with torch.inference_mode():
            assert torch.equal(extractor.features(x), z)
    assert x.grad.abs().sum() > 0


def test_lazy_modules_must_have_been_run_once():
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ConfigError, match=r"parameters without values \(lazy modules\): 1.weight"):
        LayerExtractor(model, "1").features(torch.rand(2, 4))


def test_reduced_precision_is_kept():
    model, x = tiny_model("plain")
    extractor = LayerExtractor(model.to(torch.bfloat16), "features.0")
    z = extractor.features(x.to(torch.bfloat16))
    assert z.dtype is extractor.probe(x.to(torch.bfloat16)).dtype is torch.bfloat16
    assert extractor.resume(x.to(torch.bfloat16), z.float()).dtype is torch.bfloat16


def test_a_dead_model_is_judged_by_its_data_flow():
    model, x = tiny_model("skip-whole")
    with torch.no_grad():
        model.head.weight.zero_()
    assert LayerExtractor(model, "block1").probe(x).is_cut is True
    assert LayerExtractor(model, "block2.conv1").probe(x).is_cut is False


def test_where_neither_data_flow_nor_outputs_tell_the_answer_is_unknown():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            brightness = x.sum().item()
            return self.layer(x) * 0.0 + (0.0 if brightness > 1e9 else 1.0)

    probe = LayerExtractor(Constant(), "layer").probe(torch.rand(2, 3))
    assert probe.is_cut is None
    assert "cannot be told" in probe.note


def test_a_single_constant_image_is_enough_for_a_probe():
    x = torch.zeros(1, 3, 8, 8)
    assert LayerExtractor(SkipNet(), "block1").probe(x).is_cut is True
    assert LayerExtractor(SkipNet(), "block1.conv2").probe(x).is_cut is False
