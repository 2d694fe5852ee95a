"""Vision transformers of timm and of open_clip's structure: tokens, half precision, frozen, of inference mode."""

from __future__ import annotations

import pytest
import torch
from small_parts import TINY
from torch import Tensor, nn

from posthoc_inn import ConfigError, ImageSpec, Interpreter
from posthoc_inn.features import LayerExtractor

SPEC = ImageSpec(size=(32, 32), mean=(0.5,), std=(0.5,))


def images(n=48):
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (32, 32), mode="bilinear")


class Plain(nn.Module):
    """A block of open_clip's or OpenAI's: attention and MLP, each after a norm and beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    """The image side of CLIP, as open_clip builds it: class embedding in front, pooled by the class token."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, 8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn(17, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([Plain(width) for _ in range(3)])
        self.proj = nn.Parameter(torch.randn(width, 16))

    def tokens(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_pre(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x)[:, 0] @ self.proj


class Clip(nn.Module):
    """Both sides: an image alone gives features, no text features, and the scale, as open_clip's CLIP does."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.logit_scale = Tower(), nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor, text: Tensor | None = None) -> tuple[Tensor, None, Tensor]:
        return nn.functional.normalize(self.visual(image), dim=-1), None, self.logit_scale.exp()


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def vit(**more):
    timm = pytest.importorskip("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 10}
    model = seeded(lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False, **sizes, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # random weights of timm are so small that all tokens are nearly nothing
    return model


def in_inference_mode():
    with torch.inference_mode():
        return vit()


BUILDS = {
    "bf16": lambda: vit().to(torch.bfloat16),
    "fp16": lambda: vit().to(torch.float16),
    "frozen": lambda: vit().requires_grad_(False),
    "inference mode": in_inference_mode,
}
CHOSEN = {"class": lambda t: t[:, 0], "patches": lambda t: t[:, 1:], "mean": lambda t: t.mean(1), "all": lambda t: t}


def own_tokens(model, x):
    """The tokens after the second block, without any hook."""
    with torch.no_grad():
        t = model.patch_embed(x.to(model.head.weight.dtype))
        t = model._pos_embed(t)
        for block in model.blocks[:2]:
            t = block(t)
    return t


@pytest.mark.parametrize(
    ("build", "tokens"),
    [("bf16", "class"), ("fp16", "patches"), ("frozen", "mean"), ("inference mode", "patches")],
)
def test_a_timm_transformer_is_explained_as_it_is(build, tokens, tmp_path):
    model, data = BUILDS[build](), images()
    before = {name: (p.dtype, p.requires_grad, p.is_inference()) for name, p in model.named_parameters()}
    it = Interpreter(model, "blocks.1", tokens=tokens, spec=SPEC, preset=TINY, precision="32")
    it.fit(data, evaluate=tokens == "class")
    expected = CHOSEN[tokens](own_tokens(model, (data[:5] - 0.5) / 0.5)).float()
    assert (it.pipeline.features(data[:5]) - expected).abs().max() < 0.02 * expected.abs().max()
    drawn = it.sample(data[:2], n=2, seed=3)
    assert drawn.dtype == torch.float32
    assert bool(torch.isfinite(it.sample(data[:2], n=2, refine=2)).all())  # gradients go through, to no weight
    assert {n: (p.dtype, p.requires_grad, p.is_inference()) for n, p in model.named_parameters()} == before
    assert all(p.grad is None for p in model.parameters())
    it.save(tmp_path / "bundle")
    again = Interpreter.load(tmp_path / "bundle", model=BUILDS[build]())
    assert torch.allclose(again.sample(data[:2], n=2, seed=3), drawn, atol=1e-4)


@pytest.mark.parametrize("build", ["bf16", "fp16", "inference mode"])
@pytest.mark.parametrize("tokens", ["class", "patches", "all"])
def test_a_half_precision_transformer_goes_on_from_its_own_tokens(build, tokens):
    model = BUILDS[build]()
    x = ((images(3) - 0.5) / 0.5).to(model.head.weight.dtype)
    extractor = LayerExtractor(model, "blocks.1", tokens=tokens)
    z = extractor.features(x)
    assert torch.equal(extractor.resume(x, z.float()), extractor.predict(x))  # z is kept as float32
    assert not torch.equal(extractor.resume(x, z.flip(0).float()), extractor.predict(x))


def test_register_tokens_are_no_patches():
    model = vit(reg_tokens=2)
    x = images(2)
    z = LayerExtractor(model, "blocks.1", tokens="patches").features(x)
    assert torch.allclose(z, own_tokens(model, x)[:, 3:], atol=1e-5)


@pytest.mark.parametrize(("dtype", "tokens"), [(torch.float32, "class"), (torch.bfloat16, "patches")])
def test_the_image_side_of_a_clip_is_explained(dtype, tokens):
    model, data = seeded(Tower).to(dtype).requires_grad_(False), images()
    it = Interpreter(
        model, "transformer.resblocks.1", tokens=tokens, spec=SPEC, preset=TINY, precision="32",
        prediction_kind="embedding",
    ).fit(data)  # fmt: skip
    with torch.no_grad():
        t = model.tokens(((data[:3] - 0.5) / 0.5).to(dtype))
        t = model.transformer.resblocks[1](model.transformer.resblocks[0](t))
    assert torch.allclose(it.pipeline.features(data[:3]), CHOSEN[tokens](t).float(), atol=2e-2)
    # Inside a timm or open_clip tower the class token reads the patches later: they go around it.
    assert it.metrics_["is_cut"] is not True or tokens == "patches"
    assert 0 < it.metrics_["faithfulness"]["output_similarity"] <= 1


def test_a_whole_clip_needs_to_be_told_which_output_is_its_prediction():
    model, data = seeded(Clip), images()
    options = {"layer": "visual.transformer.resblocks.1", "tokens": "class", "spec": SPEC, "preset": TINY}
    with pytest.raises(ConfigError, match="prediction=0"):
        Interpreter(model, **options, precision="32").fit(data)
    it = Interpreter(model, **options, precision="32", prediction=0, prediction_kind="embedding").fit(data)
    assert it.sample(data[:2], n=2).shape == (2, 2, 3, 32, 32)
