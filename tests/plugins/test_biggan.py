"""The biggan plugin: public checkpoints in every known layout, codes of classes, and fits to what a generator draws."""

import pytest
import torch
from biggan_references import (
    CHUNK,
    CLASS_DIM,
    CLASSES,
    converted,
    deep,
    original,
    run_converted,
    run_deep,
    run_original,
)
from safetensors.torch import save_file
from small_parts import SPEC, TINY, network

from posthoc_inn import Interpreter
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import ConfigError, DataError
from posthoc_inn.plugins import PluginManager

plugin = pytest.importorskip("posthoc_inn_biggan")
decoder = pytest.importorskip("posthoc_inn_biggan.decoder")
dequantization = pytest.importorskip("posthoc_inn_biggan.dequantization")
Architecture = pytest.importorskip("posthoc_inn_biggan.network").Architecture
LESS = 80
"""Steps that suffice for codes of few classes."""


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stored(state, path):
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small original one, and the codes of its classes."""
    root = tmp_path_factory.mktemp("biggan")
    path = stored(original(widths=(8, 4, 2), attention=0), root / "G_ema.pth")
    plugin.generator(path, codes=root / "G_ema.pth.codes.safetensors", steps=LESS)
    return path, root / "G_ema.pth.codes.safetensors"


def check(state, path, expected, **more):
    """Read what was stored, run it beside the reference, and return the network."""
    built = decoder.read_network(stored(state, path), **more)
    z = torch.randn(3, built.architecture.z_dim, generator=seeded())
    number = torch.tensor([0, 3, CLASSES - 1])
    images, reference = built(z, built.embedding[number]), expected(z, number)
    assert images.shape == reference.shape == (3, 3, built.architecture.size, built.architecture.size)
    assert reference.std() > 0.05
    assert torch.allclose(images, reference, atol=2e-4)
    return built


@pytest.mark.parametrize("hierarchical", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_original_checkpoint_computes_what_the_public_network_does(tmp_path, hierarchical, suffix):
    state = original(hierarchical=hierarchical)
    built = check(state, tmp_path / f"G{suffix}", lambda z, k: run_original(state, z, k), layout="original")
    shape = built.architecture
    assert (shape.size, shape.z_dim, shape.classes, shape.attentions) == (32, 4 * CHUNK, CLASSES, ((2, 32),))
    assert not built.training
    assert not any(p.requires_grad for p in built.parameters())


def test_one_without_attention_or_normalised_weights_is_read_too(tmp_path):
    state = original(attention=None)
    plain = {name: tensor for name, tensor in state.items() if not name.endswith((".u0", ".sv0"))}
    built = decoder.read_network(stored(plain, tmp_path / "G.pth"))
    assert torch.equal(built.blocks[0].convs[0].weight, state["blocks.0.0.conv1.weight"])
    check(state, tmp_path / "normalised.pth", lambda z, k: run_original(state, z, k))


def test_one_converted_from_tensorflow_computes_what_the_public_network_does(tmp_path):
    state = converted()
    built = check(state, tmp_path / "biggan-256.pth", lambda z, k: run_converted(state, z, k), layout="original")
    assert built.architecture.size == 16


@pytest.mark.parametrize(("truncation", "row"), [(0.5, 25), (0.3, 15), (1.0, 50), (0.02, 1)])
def test_a_deep_checkpoint_uses_the_statistics_of_its_truncation(tmp_path, truncation, row):
    state = deep()
    built = check(state, tmp_path / "pytorch_model.bin", lambda z, k: run_deep(state, z, k, row), truncation=truncation)
    shape = built.architecture
    assert (shape.deep, shape.size, shape.z_dim, shape.attentions) == (True, 16, CLASS_DIM, ((2, 32),))


def test_statistics_between_two_truncations_are_interpolated(tmp_path):
    state = deep()
    built = decoder.read_network(stored(state, tmp_path / "G.bin"), truncation=0.505)
    rows = state["generator.bn.running_means"]
    assert torch.allclose(built.norm.mean, 0.75 * rows[25] + 0.25 * rows[26], atol=1e-5)


def test_a_class_is_coded_with_a_density_and_found_again():
    embeddings = torch.randn(10, 16, generator=seeded()) * 3 + 1
    before = torch.get_rng_state()
    vae, again = (dequantization.DequantizedClass.fit(embeddings, code_dim=8, width=64, steps=150) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    mean, std = vae.encode(embeddings)
    assert torch.equal(mean, again.encode(embeddings)[0])
    assert float(std.min()) > 1e-3
    drawn = vae.decode(mean + std * torch.randn(mean.shape, generator=seeded()))
    assert float((torch.cdist(drawn, embeddings).argmin(1) == torch.arange(10)).double().mean()) > 0.9
    with pytest.raises(DataError, match="embeddings of the 4 classes do not differ"):
        dequantization.DequantizedClass.fit(torch.ones(4, 3), steps=1)


def test_latents_are_drawn_from_the_truncated_prior(checkpoint):
    path, codes = checkpoint
    own = decoder.read_network(path, truncation=0.4)
    made = decoder.ClassDecoder(own, decoder.read_codes(own, codes), truncation=0.4, only=[2, 5])
    latents = made.prior(400, seeded())
    z = latents[:, : made.network.architecture.z_dim]
    assert latents.shape == (400, made.latent_dim)
    assert float(z.abs().max()) <= 0.8
    # Deviation of a normal distribution that is cut off at 2.
    assert float(z.std()) == pytest.approx(0.4 * 0.8796, rel=0.03)
    assert set(made.nearest(latents).tolist()) == {2, 5}
    assert torch.equal(made.prior(400, seeded()), latents)
    expected = made.network(z[:2], made.classes.decode(latents[:2, z.shape[1] :])) / 2 + 0.5
    assert torch.equal(made(latents[:2]), expected)


def test_t_of_the_publication_has_268_inputs():
    shape = Architecture(False, (8,) * 7, 4, 140, 128, 9, 20, (), 1e-4)
    with torch.device("meta"):
        made = decoder.ClassDecoder(decoder.BigGAN(shape), dequantization.DequantizedClass(128), truncation=1.0)
    assert (made.latent_dim, shape.size) == (268, 256)


def test_codes_are_kept_in_a_file_and_those_of_another_generator_noticed(checkpoint, tmp_path):
    path, codes = checkpoint
    own = decoder.read_network(path)
    kept, trained = decoder.read_codes(own, codes), decoder.read_codes(own, steps=LESS)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), trained.parameters(), strict=True))
    other = decoder.read_network(stored(original(seed=5), tmp_path / "other.pth"))
    with pytest.raises(DataError, match="has codes for the classes of another generator"):
        decoder.read_codes(other, codes)
    with pytest.raises(DataError, match="cannot be written"):
        decoder.read_codes(own, tmp_path / "none" / "codes.safetensors", steps=1)
    with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
        decoder.read_codes(own, steps=0)


def test_t_is_fitted_to_what_the_generator_draws(checkpoint, tmp_path):
    path, codes = checkpoint
    generator = plugin.generator(path, codes=codes, size=28)
    draws = generator.draws(40)
    model = network()
    fitted = Interpreter(model, "2", spec=SPEC, preset=TINY, precision="32", autoencoder=generator).fit(draws)
    images = torch.stack([draws[k] for k in range(2)])
    samples = fitted.sample(images, n=2, seed=1)
    assert samples.shape == (2, 2, 3, 28, 28)
    fitted.save(tmp_path / "run")
    again = Interpreter.load(tmp_path / "run", model=model, autoencoder=plugin.generator(path, codes=codes, size=28))
    assert torch.equal(again.sample(images, n=2, seed=1), samples)


def test_a_local_checkpoint_is_a_registered_name(checkpoint):
    manager = PluginManager([])
    manager.load()
    manager.register(plugin, distribution="posthoc-inn-biggan")
    built = manager.build(manager.autoencoders, f"biggan:{checkpoint[0]}", AutoencoderConfig(size=32))
    assert (built.native_shape, built.config.size) == ((3, 16, 16), 32)


def test_what_is_missing_or_wrong_is_said_in_one_line(checkpoint, tmp_path):
    def refused(match, state=None, path=checkpoint[0], error=DataError, **more):
        with pytest.raises(error, match=match) as raised:
            decoder.read_network(path if state is None else stored(state, tmp_path / "G.pth"), **more)
        assert "\n" not in str(raised.value)

    refused("The weights file .* is missing", path=tmp_path / "none.pth")
    refused("is no generator of BigGAN in a known layout .*0.weight", network().state_dict())
    refused("has the layout 'original', got layout='deep'", layout="deep")
    refused(
        "layout is 'auto' or .* got 'wide'; truncation must be in", error=ConfigError, layout="wide", truncation=0.0
    )
    state = original()
    refused("others that it does not have: blocks.0.0.conv3.weight", state | {"blocks.0.0.conv3.weight": torch.ones(1)})
    refused("'blocks.0.norms.0.gain.weight' is missing", {n: t for n, t in state.items() if ".0.0.bn1.gain" not in n})
    refused("no embedding that all blocks share", {n: t for n, t in state.items() if n != "shared.weight"})
    refused(
        "which is no square map of 64 channels",
        state | {"linear.weight": torch.ones(65, 3), "linear.u0": torch.ones(1, 65)},
    )
    refused("The singular vectors of linear in .* do not fit its weight", state | {"linear.u0": torch.ones(1, 3)})
    refused("blocks get 9 values, not 6 of the class and 5 of z", state | {"linear.weight": torch.ones(1024, 5)})
    refused("not finite: linear.bias", state | {"linear.bias": state["linear.bias"] / 0})
    refused("it has 1 blocks; a deep one has two for each side", deep(pairs=((8, 1),), attention=None))
    refused("blocks.1.convs.1.bias", {n: t for n, t in state.items() if n != "blocks.1.0.conv2.bias"})
    with pytest.raises(ConfigError, match=r"numbers from 0 to 6, at least one, got \[7\]"):
        plugin.generator(checkpoint[0], codes=checkpoint[1], classes=[7])
