"""The papers' autoencoder for photographs of 128 px (MSC tab. S7): its shapes, and a step of training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posthoc_inn.config import AutoencoderConfig, TrainConfig
from posthoc_inn.errors import ConfigError
from posthoc_inn.plugins import PluginManager
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import train
from posthoc_inn.training.tasks import AutoencoderTask

pytest.importorskip("torchvision")
plugin = pytest.importorskip("posthoc_inn_torchvision")
pair = pytest.importorskip("posthoc_inn_torchvision.pair")


def narrow(**more):
    return AutoencoderConfig(kind="msc-photos", **({"size": 128, "latent_dim": 16, "width": 2} | more))


def test_the_full_size_has_the_maps_of_the_table():
    with torch.device("meta"):
        full = pair.PhotoAutoencoder(narrow(latent_dim=128, width=96))
        seen = []
        names = ("maxpool", "layer1", "layer2", "layer3", "layer4", "fc")
        listened = [getattr(full.encoder, name) for name in names]
        for module in [*listened, *full.decoder.blocks, full.decoder.to_rgb]:
            module.register_forward_hook(lambda _module, _args, out: seen.append(tuple(out.shape[1:])))
        full.decoder(full.encoder(torch.empty(1, 3, 128, 128))[:, :128])
    assert seen[:6] == [(64, 32, 32), (256, 32, 32), (512, 16, 16), (1024, 8, 8), (2048, 4, 4), (256,)]
    assert seen[6:11] == [(16 * 96, 8, 8), (8 * 96, 16, 16), (4 * 96, 32, 32), (2 * 96, 64, 64), (96, 128, 128)]
    assert seen[11] == (3, 128, 128)
    assert [len(getattr(full.encoder, f"layer{k}")) for k in (1, 2, 3, 4)] == [3, 4, 23, 3]
    linear = [m.out_features for m in full.decoder.classes if isinstance(m, nn.Linear)]
    assert (linear, full.decoder.embedding.out_features) == ([256, 256, 256, 1000], 128)
    assert full.decoder.attention.query.in_channels == 2 * 96


def test_a_narrow_one_is_registered_and_takes_a_step_with_a_discriminator():
    manager = PluginManager([])
    manager.register(plugin, distribution="posthoc-inn-torchvision")
    config = narrow(discriminator=0.5, discriminator_start=0.0, discriminator_width=2)
    autoencoder = manager.build(manager.autoencoders, "msc-photos", config)
    before = {name: p.detach().clone() for name, p in autoencoder.named_parameters()}
    cache = Cache()
    cache.append(images=torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8))
    task = AutoencoderTask(autoencoder, cache, cache, batch_size=3, seed=0, steps=1)
    history = train(task, TrainConfig(steps=1, batch_size=3, eval_every=0, warmup=0.0, lr=1e-3, patience=0))
    assert history.rows[-1]["error"] > 0
    moved = [name for name, p in autoencoder.named_parameters() if not torch.equal(p, before[name])]
    # The attention's gain starts at zero: what is behind it moves a step later.
    assert {n for n in before if n not in moved} <= {n for n in before if ".attention." in n}
    assert "decoder.attention.gain" in moved
    images = torch.rand(2, 3, 128, 128)
    mean, std = autoencoder.encode(images)
    assert mean.shape == std.shape == (2, 16)
    assert autoencoder.decode(mean).shape == images.shape
    assert torch.allclose(autoencoder.encode(images[:1])[0], mean[:1], rtol=1e-3, atol=1e-4)


def test_another_size_or_a_map_is_refused():
    with pytest.raises(ConfigError, match=r"takes images of 128 pixels .*got 64 pixels"):
        pair.PhotoAutoencoder(narrow(size=64))
    with pytest.raises(ConfigError, match="latent='map'"):
        pair.PhotoAutoencoder(AutoencoderConfig.of_map(128, kind="msc-photos"))
