from __future__ import annotations

import dataclasses
import json
import math
import os

import pytest
import torch
from bundle_helpers import LATENT, document, make_autoencoder, make_bundle, make_flow, make_model, sample
from make_golden import DATA
from torch import nn

from posthoc_inn.autoencoders import GivenAutoencoder
from posthoc_inn.bundle import MEMBERS, load_bundle, load_model_state, modules, save_bundle
from posthoc_inn.config import AutoencoderConfig, ConditionerConfig, FlowConfig, ImageSpec
from posthoc_inn.errors import BundleError
from posthoc_inn.flows import ConditionalFlow, set_compute_dtype
from posthoc_inn.images.adapter import InputAdapter
from posthoc_inn.weights import fingerprint


def given_autoencoder(seed=0, noise=0.01):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 784, LATENT))
        decoder = nn.Sequential(nn.Linear(LATENT, 3 * 784), nn.Unflatten(1, (3, 28, 28)), nn.Sigmoid())
    return GivenAutoencoder(encoder, decoder, size=28, noise=noise).eval()


@pytest.mark.parametrize("kind", ["affine", "spline", "linear", "linear+affine"])
@pytest.mark.parametrize("z_shape", [(7,), (3, 5, 5), (4, 6)], ids=["vector", "map", "tokens"])
def test_samples_after_loading_are_bitwise_the_same(tmp_path, kind, z_shape):
    bundle = make_bundle(flow=make_flow(kind, z_shape, bins=4), z_shape=z_shape)
    loaded = load_bundle(save_bundle(bundle, tmp_path / "run"))
    for before, after in zip(sample(bundle), sample(loaded), strict=True):
        assert torch.equal(before, after)
    assert not loaded.flow.training
    assert not loaded.autoencoder.training


def test_everything_else_comes_back_too(saved):
    bundle, loaded = make_bundle(), load_bundle(saved)
    for field in dataclasses.fields(bundle):
        if field.name not in ("autoencoder", "flow", "concepts"):
            assert getattr(loaded, field.name) == getattr(bundle, field.name), field.name
    assert loaded.flow.flow.config == bundle.flow.flow.config
    assert loaded.autoencoder.config == bundle.autoencoder.config


def test_e_comes_back_with_its_names_to_the_bit(saved):
    e, loaded = make_bundle().concepts, load_bundle(saved).concepts
    assert (loaded.names, loaded.factor_dims, loaded.space, loaded.shape) == (e.names, e.factor_dims, e.space, e.shape)
    x = torch.randn(5, LATENT)
    assert torch.equal(loaded.joined(x), e.joined(x))
    assert torch.equal(loaded.rho, e.rho)
    assert torch.equal(loaded.deviation, e.deviation)
    assert not loaded.training


def test_an_old_e_is_saved_anew_as_it_was(tmp_path):
    old = load_bundle(DATA / "v3")
    loaded = load_bundle(save_bundle(old, tmp_path / "run")).concepts
    assert not loaded.is_measured
    assert loaded.deviation.tolist() == [1] * 4


def test_a_bundle_without_e_has_none(tmp_path):
    run = save_bundle(make_bundle(concepts=None), tmp_path / "run")
    assert load_bundle(run).concepts is None
    assert document(run)["concepts"] is None


def test_canonical_images_have_no_normalization_after_loading(tmp_path):
    adapter = InputAdapter(ImageSpec(size=(32, 32), mean=(0.1, 0.2, 0.3), std=(0.5,)), None, 28, 3)
    assert load_bundle(save_bundle(make_bundle(adapter=adapter), tmp_path / "run")).adapter == adapter


def test_loading_draws_nothing_from_the_global_generator(saved):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_bundle(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_draws_nothing_and_changes_nothing(tmp_path):
    bundle = make_bundle()
    torch.manual_seed(5)
    before = torch.get_rng_state(), sample(bundle)
    save_bundle(bundle, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(sample(bundle)[0], before[1][0])


def test_the_same_bundle_gives_the_same_bytes(tmp_path):
    first, second = (save_bundle(make_bundle(), tmp_path / name) for name in "ab")
    for name in os.listdir(first):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_flow_that_computed_in_bf16_is_loaded_in_float32(tmp_path):
    bundle = make_bundle()
    exact = sample(bundle)[0]
    set_compute_dtype(bundle.flow, torch.bfloat16)
    assert not torch.equal(sample(bundle)[0], exact)
    loaded = load_bundle(save_bundle(bundle, tmp_path / "run"))
    assert torch.equal(sample(loaded)[0], exact)
    assert {p.dtype for p in loaded.flow.parameters()} == {torch.float32}


def test_loading_gives_float32_whatever_the_default_dtype_is(saved):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        loaded = load_bundle(saved)
    finally:
        torch.set_default_dtype(before)
    assert {p.dtype for m in (loaded.flow, loaded.autoencoder) for p in m.parameters()} == {torch.float32}


def test_only_a_bundles_members_are_written(saved):
    assert set(os.listdir(saved)) == set(MEMBERS) - {"model.safetensors"}


def test_the_digests_are_those_of_the_files(saved):
    import hashlib

    for name, record in document(saved)["members"].items():
        data = (saved / name).read_bytes()
        assert (record["size"], record["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_figures_that_are_not_finite_are_stored_as_null(tmp_path):
    metrics = {"a": math.nan, "b": [1.5, math.inf], "c": {"d": (2, -math.inf)}}
    run = save_bundle(make_bundle(metrics=metrics), tmp_path / "run")
    assert load_bundle(run).metrics == {"a": None, "b": [1.5, None], "c": {"d": [2, None]}}


def test_metrics_that_json_cannot_hold_are_refused(tmp_path):
    with pytest.raises(BundleError, match=r"metrics\.json cannot be written: .*Tensor"):
        save_bundle(make_bundle(metrics={"a": torch.zeros(2)}), tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_the_card_says_in_words_what_it_is(saved):
    card = (saved / "README.md").read_text()
    for part in (
        "`Sequential`",
        "`0`",
        "3×5×5",
        "color-digits",
        "91.0%",
        "24.5 nats",
        "97.0%",
        "Interpreter.load(",
        "memorise",
        "converged",
    ):
        assert part in card, part


def test_the_card_can_be_edited_or_removed(saved):
    (saved / "README.md").write_text("mine")
    load_bundle(saved)
    (saved / "README.md").unlink()
    load_bundle(saved)


def test_names_in_the_card_cannot_break_out_of_it(tmp_path):
    nasty = "x` </code><script>alert(1)</script>\n# heading ![](http://evil)\x1b[31m\ud800"
    bundle = make_bundle(
        extractor={"layer": nasty},
        model_class=nasty,
        origin={nasty: nasty, "n": 3},
        metrics={"likelihood": {"verdict": nasty}},
    )
    card = (save_bundle(bundle, tmp_path / "run") / "README.md").read_text()
    assert "\n# heading" not in card
    assert "\x1b" not in card
    for line in card.splitlines():
        # <, ! and [ count only inside a code span, or escaped
        outside = "".join(part for i, part in enumerate(line.split("`")) if i % 2 == 0)
        assert line.count("`") % 2 == 0 or line.startswith("```")
        assert "<script" not in outside.replace("\\<", "")
        assert "![" not in outside.replace("\\!", "")


@pytest.mark.parametrize("metrics", [{}, {"likelihood": None, "faithfulness": 3}, {"likelihood": {"held_out": None}}])
def test_figures_that_were_not_measured_are_left_out_of_the_card(tmp_path, metrics):
    card = (save_bundle(make_bundle(metrics=metrics), tmp_path / "run") / "README.md").read_text()
    assert "none were measured" in card


# ---- the user's own autoencoder


def test_the_weights_of_a_users_own_autoencoder_are_not_stored(tmp_path):
    run = save_bundle(make_bundle(autoencoder=given_autoencoder()), tmp_path / "run")
    from safetensors import safe_open

    with safe_open(run / "weights.safetensors", "pt") as f:
        assert {name.partition(".")[0] for name in f.keys()} == {"concepts", "flow"}  # noqa: SIM118
    with pytest.raises(BundleError, match=r"user's own \(GivenAutoencoder, 28 px.*Pass it as autoencoder="):
        load_bundle(run)
    own = given_autoencoder()
    assert load_bundle(run, autoencoder=own).autoencoder is own
    assert "not stored here" in (run / "README.md").read_text()


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (lambda: given_autoencoder(seed=1), "other weights.*fingerprint"),
        (lambda: given_autoencoder(noise=0.02), "other options.*0.02"),
        (make_autoencoder, "a ConvAutoencoder, is not the one.*GivenAutoencoder"),
        (lambda: nn.Identity(), "a Identity, is not the one"),
    ],
    ids=["weights", "options", "kind", "none"],
)
def test_another_autoencoder_than_the_one_it_was_fitted_with_is_refused(tmp_path, other, match):
    run = save_bundle(make_bundle(autoencoder=given_autoencoder()), tmp_path / "run")
    with pytest.raises(BundleError, match=match):
        load_bundle(run, autoencoder=other())


def test_a_built_in_autoencoder_can_be_shared(saved):
    own = make_autoencoder()
    assert load_bundle(saved, autoencoder=own).autoencoder is own
    with pytest.raises(BundleError, match="other weights"):
        load_bundle(saved, autoencoder=make_autoencoder(seed=9).requires_grad_(False))


def test_an_own_class_under_a_registered_kind_is_not_taken_for_the_registered_one(tmp_path):
    class Mine(nn.Module):
        config = AutoencoderConfig(size=28, latent_dim=LATENT)
        latent_dim = LATENT

    run = save_bundle(make_bundle(autoencoder=Mine()), tmp_path / "run")
    with pytest.raises(BundleError, match=r"user's own \(Mine"):
        load_bundle(run)


@pytest.mark.slow
def test_a_compiled_wrapper_is_looked_through(tmp_path):
    bundle = make_bundle()
    wrapped = dataclasses.replace(
        bundle,
        autoencoder=torch.compile(bundle.autoencoder, backend="eager"),
        flow=torch.compile(bundle.flow, backend="eager"),
    )
    loaded = load_bundle(save_bundle(wrapped, tmp_path / "run"))
    assert torch.equal(sample(loaded)[1], sample(bundle)[1])


# ---- the explained model


def test_the_models_own_weights_can_be_stored(tmp_path):
    model = make_model()
    run = save_bundle(make_bundle(model), tmp_path / "run", model_state=model.state_dict())
    assert load_bundle(run).origin["weights_file"] == "model.safetensors"
    other = make_model(seed=8)
    other.load_state_dict(load_model_state(run))
    assert fingerprint(other) == fingerprint(model)


def test_the_state_of_a_wrapped_model_is_stored_under_its_own_names(tmp_path):
    model = make_model()
    wrapped = nn.DataParallel(model).state_dict()
    run = save_bundle(make_bundle(model), tmp_path / "run", model_state=wrapped)
    assert load_model_state(run).keys() == model.state_dict().keys()


def test_a_bundle_without_the_models_weights_says_so(saved):
    with pytest.raises(BundleError, match="does not hold the explained model"):
        load_model_state(saved)


def test_the_state_of_another_model_is_not_stored(tmp_path):
    with pytest.raises(BundleError, match="not the state of the model"):
        save_bundle(make_bundle(), tmp_path / "run", model_state=make_model(seed=1).state_dict())


def test_saving_again_without_the_models_weights_drops_their_file(tmp_path):
    model = make_model()
    run = save_bundle(make_bundle(model), tmp_path / "run", model_state=model.state_dict())
    loaded = load_bundle(run)
    save_bundle(loaded, run, overwrite=True)
    assert not (run / "model.safetensors").exists()
    assert "weights_file" not in load_bundle(run).origin


def test_tied_weights_are_stored(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    run = save_bundle(make_bundle(model), tmp_path / "run", model_state=model.state_dict())
    assert torch.equal(load_model_state(run)["1.weight"], model[0].weight)


def test_another_model_is_recognised_and_the_message_says_where_it_differs(saved):
    bundle = load_bundle(saved)
    assert bundle.is_for(make_model())
    trained_on = make_model()
    trained_on[3].weight.data[0, 0] += 1e-6
    assert not bundle.is_for(trained_on)
    assert "only" not in str(bundle.wrong_model(trained_on))
    assert "1 of 9 tensors have other values in the given Sequential, first 3.weight" in str(
        bundle.wrong_model(trained_on)
    )
    message = str(bundle.wrong_model(nn.Linear(2, 2)))
    assert "fitted to another model, a Sequential" in message
    assert "given Linear" in message
    assert "0.bias is float32 (3,) there, missing in the given Linear" in message


def test_another_model_is_named_by_fingerprint_when_nothing_more_is_known(tmp_path):
    bundle = load_bundle(save_bundle(make_bundle(model_tensors={}), tmp_path / "run"))
    other = make_model(seed=4)
    assert f"{bundle.model_fingerprint}, the given Sequential has {fingerprint(other)}" in str(
        bundle.wrong_model(other)
    )


def test_wrappers_order_and_device_do_not_change_the_fingerprint():
    model = make_model()
    state = dict(reversed(model.state_dict().items()))
    assert fingerprint(model) == fingerprint(state) == fingerprint(nn.DataParallel(model))
    assert fingerprint({f"_orig_mod.{name}": tensor for name, tensor in state.items()}) == fingerprint(model)
    assert fingerprint(model) != fingerprint(make_model().double())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(()),
        torch.empty(0),
        torch.ones(2, dtype=torch.bool),
        torch.ones(2, dtype=torch.bfloat16),
        torch.ones(2, dtype=torch.complex64).conj(),
        torch.eye(2).to_sparse(),
        torch.ones(2, 3).t(),
    ],
    ids=["scalar", "empty", "bool", "bf16", "complex", "sparse", "transposed"],
)
def test_every_kind_of_tensor_has_a_fingerprint(tensor):
    assert fingerprint({"a": tensor}) == fingerprint({"a": tensor.clone()})
    assert fingerprint({"a": tensor}) != fingerprint({"b": tensor})


# ---- what is not saved


def test_a_flow_that_was_never_fitted_is_not_saved(tmp_path):
    flow = ConditionalFlow(FlowConfig(dim=LATENT, context_dim=6, blocks=1, width=4), ConditionerConfig((3, 5, 5), 6, 4))
    with pytest.raises(BundleError, match="never fitted"):
        save_bundle(make_bundle(flow=flow), tmp_path / "run")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    bundle = make_bundle()
    next(bundle.flow.parameters()).data.view(-1)[0] = math.nan
    with pytest.raises(BundleError, match="1 tensors hold NaN or infinity and are not saved"):
        save_bundle(bundle, tmp_path / "run")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"z_shape": (4,)}, "z_shape differs"),
        ({"adapter": InputAdapter(ImageSpec(), None, 32, 1)}, "image_size differs.*channels differs"),
        ({"extractor": {"layer": "0", "lajer": 1}}, "unknown key 'lajer'"),
        ({"model_class": ""}, "class_name must be text"),
    ],
    ids=["z", "adapter", "extractor", "class"],
)
def test_parts_that_do_not_fit_together_are_not_saved(tmp_path, changes, match):
    with pytest.raises(BundleError, match=match):
        save_bundle(make_bundle(**changes), tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_the_metrics_file_is_plain_json(saved):
    assert json.loads((saved / "metrics.json").read_text())["likelihood"]["held_out"] == 24.5


def test_a_part_that_draws_from_the_global_generator_while_it_is_built_leaves_no_trace(tmp_path):
    state = {f"autoencoder.{name}": tensor for name, tensor in nn.Linear(3, 2).state_dict().items()}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    modules.filled(lambda: nn.Linear(3, 2), state, "autoencoder.", "autoencoder", tmp_path)
    modules.skeleton(lambda: nn.Linear(3, 2), is_core=False)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_card_names_the_concepts(saved):
    assert "e: factors over `z_bar` with their dimensions: `residual` 2, `digit` 1, `color` 1" in (
        saved / "README.md"
    ).read_text().replace("\\", "")
