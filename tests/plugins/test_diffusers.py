"""The diffusers plugin: encoders and decoders from directories, standardised latents, noise, and clear errors."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_parts import SPEC, TINY, network

from posthoc_inn import Interpreter
from posthoc_inn.config import AutoencoderConfig
from posthoc_inn.errors import BundleError, ConfigError, DataError
from posthoc_inn.plugins import PluginManager
from posthoc_inn.weights import seeded_init

diffusers = pytest.importorskip("diffusers")
plugin = pytest.importorskip("posthoc_inn_diffusers")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def kl(**more):
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        **({"latent_channels": 2, "scaling_factor": 0.5, "shift_factor": 0.25} | more),
    )


def tiny():
    width, blocks = (8, 8, 8), (1, 1, 1)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=width,
        decoder_block_out_channels=width,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        latent_channels=2,
    )


def dc():
    halves = {"block_out_channels": (8, 8, 8), "layers_per_block": (1, 1, 1), "qkv_multiscales": ((), (), ())}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in halves.items()}
    return diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=4, scaling_factor=0.4, **sides)


BUILD = {"kl": kl, "tiny": tiny, "dc": dc}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory a kind, as save_pretrained writes it."""
    root = tmp_path_factory.mktemp("diffusers")
    with seeded_init():
        for kind, build in BUILD.items():
            build().save_pretrained(root / kind)
    return root


@pytest.fixture
def images():
    return torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def means(autoencoder, images):
    model = autoencoder.model
    out = model.encode(images * 2 - 1)
    return {"kl": lambda: out.latent_dist.mean, "tiny": lambda: out.latents, "dc": lambda: out.latent}[
        autoencoder.kind
    ]()


@pytest.mark.parametrize("kind", BUILD)
def test_latents_are_standardised_flattened_and_decoded_back(saved, images, kind):
    before = torch.get_rng_state()
    autoencoder = plugin.load(str(saved / kind), size=28)
    assert torch.equal(torch.get_rng_state(), before)
    assert autoencoder.kind == kind
    channels = 4 if kind == "dc" else 2
    assert autoencoder.latent_shape == (channels, 7, 7)
    assert autoencoder.latent_dim == channels * 49
    own = means(autoencoder, images)
    settings = autoencoder.model.config
    expected = (own - (settings.get("shift_factor") or 0)) * settings["scaling_factor"]
    mean, std = autoencoder.encode(images)
    assert torch.allclose(mean, expected.flatten(1), atol=1e-5)
    assert std.shape == mean.shape
    assert float(std.min()) == pytest.approx(0.3)
    picture = (autoencoder.model.decode(own).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(autoencoder.decode(mean), picture, atol=1e-4)
    assert picture.std() > 0


def test_a_learned_deviation_above_the_noise_is_kept(saved, images):
    quiet, loud = (plugin.load(str(saved / "kl"), size=28, noise=noise) for noise in (1e-4, 0.3))
    learned = quiet.model.encode(images * 2 - 1).latent_dist.std.flatten(1) * 0.5
    assert torch.allclose(quiet.encode(images)[1], learned, atol=1e-5)
    assert torch.allclose(loud.encode(images)[1], learned.clamp_min(0.3), atol=1e-5)


def test_shift_and_scale_are_measured_over_images(saved, images):
    autoencoder = plugin.load(str(saved / "tiny"), size=28, measure=images)
    mean = autoencoder.encode(images)[0].view(3, 2, -1)
    assert torch.allclose(mean.mean(dim=(0, 2)), torch.zeros(2), atol=1e-4)
    assert torch.allclose(mean.std(dim=(0, 2)), torch.ones(2), atol=1e-2)
    own = means(autoencoder, images)
    decoded = (autoencoder.model.decode(own).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(autoencoder.decode(mean.flatten(1)), decoded, atol=1e-4)
    with pytest.raises(DataError, match=r"at least 2 images \('B', 3, 28, 28\), got \(3, 3, 32, 32\)"):
        autoencoder.measure(torch.rand(3, 3, 32, 32))
    with pytest.raises(DataError, match="does not vary over the images"):
        plugin.load(str(saved / "tiny"), size=28).measure(torch.full((2, 3, 28, 28), float("nan")))


def test_statistics_of_each_channel_in_the_configuration_are_used(tmp_path, images):
    with seeded_init():
        kl(latents_mean=[0.1, 0.2], latents_std=[2.0, 4.0], shift_factor=None).save_pretrained(tmp_path)
    autoencoder = plugin.load(str(tmp_path), size=28)
    assert autoencoder.shift.flatten().tolist() == pytest.approx([0.1, 0.2])
    assert autoencoder.scale.flatten().tolist() == [0.25, 0.125]
    settings = json.loads((tmp_path / "config.json").read_text("utf-8"))
    for wrong in ({"latents_std": [1.0]}, {"scaling_factor": -1.0}, {"shift_factor": "low"}):
        (tmp_path / "config.json").write_text(json.dumps(settings | wrong), "utf-8")
        with pytest.raises(DataError, match=f"{next(iter(wrong))} of config.json is .*for a latent of 2 channels"):
            plugin.load(str(tmp_path), size=28)


def test_a_fit_and_a_bundle_take_it_as_a_given_one(saved, tmp_path):
    data = torch.rand(24, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    autoencoder = plugin.load(str(saved / "kl"), size=28)
    model = network()
    fitted = Interpreter(model, "2", spec=SPEC, preset=TINY, precision="32", autoencoder=autoencoder).fit(data)
    assert fitted.sample(data[:2], n=2).shape == (2, 2, 3, 28, 28)
    fitted.save(tmp_path / "run")
    again = Interpreter.load(tmp_path / "run", model=model, autoencoder=plugin.load(str(saved / "kl"), size=28))
    assert torch.equal(again.sample(data[:2], n=2, seed=3), fitted.sample(data[:2], n=2, seed=3))
    with pytest.raises(BundleError, match="other options"):
        Interpreter.load(tmp_path / "run", model=model, autoencoder=plugin.load(str(saved / "kl"), size=28, noise=0.1))
    with pytest.raises(BundleError, match="Pass it as autoencoder="):
        Interpreter.load(tmp_path / "run", model=model)


def test_a_local_directory_is_a_registered_name_and_never_a_download(saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: pytest.fail("asked the hub"))
    manager = PluginManager([])
    manager.load()
    manager.register(plugin, distribution="posthoc-inn-diffusers")
    built = manager.build(manager.autoencoders, f"diffusers:{saved / 'tiny'}", AutoencoderConfig(size=32))
    assert (built.latent_shape, built.config.kind) == ((2, 8, 8), "given")
    with pytest.raises(ConfigError, match="takes images of 3 channels, the images have 1"):
        manager.build(manager.autoencoders, f"diffusers:{saved / 'tiny'}", AutoencoderConfig(size=32, channels=1))
    with pytest.raises(DataError, match=r"There is no directory owner/name\. Pass one with config\.json"):
        manager.build(manager.autoencoders, "diffusers:owner/name", AutoencoderConfig())


def test_a_repository_of_the_hub_is_fetched_where_it_is_named(saved, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked = []

    def download(repository, name, subfolder=None):
        asked.append((repository, subfolder, name))
        if name.endswith(".safetensors") and subfolder is None:
            raise EntryNotFoundError("404")
        if repository == "no/network":
            raise LocalEntryNotFoundError("check your\nconnection")
        return str(saved / "kl" / name.replace(".bin", ".safetensors"))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    plugin.load("owner/name", size=28, subfolder="vae")
    assert asked == [("owner/name", "vae", "config.json"), ("owner/name", "vae", WEIGHTS)]
    plugin.load("owner/other", size=28)
    assert asked[-1] == ("owner/other", None, "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"could not be had \(LocalEntryNotFoundError: check your connection\)\. Where"):
        plugin.load("no/network", size=28)
    with pytest.raises(DataError, match=r"There is no directory \./vae\. Pass one with .*or the name of a repository"):
        plugin.load("./vae", size=28)


def test_weights_pickled_as_plain_tensors_are_read_and_code_is_not(saved, tmp_path, images):
    state = load_file(saved / "kl" / WEIGHTS)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        state = {k.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): v for k, v in state.items()}
    assert any(".query." in name for name in state)
    (tmp_path / "config.json").write_text((saved / "kl" / "config.json").read_text("utf-8"), "utf-8")
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    pickled, safe = (plugin.load(str(where), size=28) for where in (tmp_path, saved / "kl"))
    assert torch.equal(pickled.encode(images)[0], safe.encode(images)[0])
    torch.save(state | {"more": network()}, tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match="holds more than weights"):
        plugin.load(str(tmp_path), size=28)


def test_what_is_missing_or_wrong_is_said_in_one_line(saved, tmp_path):
    def refused(match, where=tmp_path, error=DataError, **more):
        with pytest.raises(error, match=match) as raised:
            plugin.load(str(where), **({"size": 28} | more))
        assert "\n" not in str(raised.value)

    refused(r"holds no config\.json \(nothing\)\. Pass what save_pretrained")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{", "utf-8")
    refused(r"holds no config\.json \(vae\)\. Pass subfolder='vae'")
    refused(f"holds no weights {WEIGHTS}", subfolder="vae")
    (tmp_path / "vae" / WEIGHTS).write_bytes((saved / "kl" / WEIGHTS).read_bytes())
    refused("cannot be read as JSON", subfolder="vae")
    for content, match in (
        ([], "holds no configuration, got list"),
        ({"_class_name": "UNet2DModel"}, "is of a UNet2DModel. Accepted are AutoencoderKL"),
        ({"_class_name": "AutoencoderKL", "act_fn": "none"}, "cannot build the AutoencoderKL"),
        ({"_class_name": "AutoencoderTiny"}, "are missing|do not fit|differ"),
    ):
        (tmp_path / "vae" / "config.json").write_text(json.dumps(content), "utf-8")
        refused(match, subfolder="vae")
    refused("is kind 'kl', got kind='dc'", where=saved / "kl", kind="dc")
    refused("kind is 'kl' or 'tiny' or 'dc', got 'vq'", where=saved / "kl", kind="vq", error=ConfigError)
    refused(
        "size must be 8 to 1024 pixels, got 0(?s:.*)noise must be positive",
        where=saved / "kl",
        size=0,
        noise=0.0,
        error=ConfigError,
    )
    refused("choose a size that its halvings divide", where=saved / "kl", size=30, error=ConfigError)
    state = load_file(saved / "kl" / WEIGHTS)
    save_file({n: t for n, t in state.items() if "conv_in" not in n}, tmp_path / "vae" / WEIGHTS)
    (tmp_path / "vae" / "config.json").write_text((saved / "kl" / "config.json").read_text("utf-8"), "utf-8")
    refused("conv_in", subfolder="vae")
