"""Random checkpoints of BigGAN under the public names, and what their networks compute, written straight down."""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional as F

CLASSES, CLASS_DIM, CHUNK, WIDE, STEPS = 7, 6, 3, 4, 51


class Maker:
    """Fills a state with random tensors."""

    def __init__(self, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.state = {}

    def put(self, name, *shape, near=0.0, spread=0.3):
        self.state[name] = near + spread * torch.randn(shape, generator=self.generator)

    def positive(self, name, *shape):
        self.state[name] = 0.5 + torch.rand(*shape, generator=self.generator)


def original(*, hierarchical=True, widths=(16, 16, 8, 4), attention=1, seed=0):
    """The public PyTorch code's: `blocks.0.0.conv1.weight`, singular vectors u0, sv0."""
    make = Maker(seed)
    z = CHUNK if hierarchical else CHUNK * len(widths)
    condition = CLASS_DIM + (CHUNK if hierarchical else 0)

    def normalised(name, *shape, bias=True):
        make.put(f"{name}.weight", *shape)
        make.put(f"{name}.u0", 1, shape[0])
        make.put(f"{name}.sv0", 1)
        if bias:
            make.put(f"{name}.bias", shape[0])

    make.put("shared.weight", CLASSES, CLASS_DIM, spread=1.0)
    normalised("linear", WIDE * widths[0] * 16, z)
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        block = f"blocks.{i}.0"
        normalised(f"{block}.conv1", WIDE * after, WIDE * before, 3, 3)
        normalised(f"{block}.conv2", WIDE * after, WIDE * after, 3, 3)
        normalised(f"{block}.conv_sc", WIDE * after, WIDE * before, 1, 1)
        for j, channels in ((1, WIDE * before), (2, WIDE * after)):
            normalised(f"{block}.bn{j}.gain", channels, condition, bias=False)
            normalised(f"{block}.bn{j}.bias", channels, condition, bias=False)
            make.put(f"{block}.bn{j}.stored_mean", channels)
            make.positive(f"{block}.bn{j}.stored_var", channels)
        if i == attention:
            c = WIDE * after
            for part, shape in {"theta": (c // 8, c), "phi": (c // 8, c), "g": (c // 2, c), "o": (c, c // 2)}.items():
                normalised(f"blocks.{i}.1.{part}", *shape, 1, 1, bias=False)
            make.put(f"blocks.{i}.1.gamma", near=0.7)
    last = WIDE * widths[-1]
    make.put("output_layer.0.gain", last, near=1.0)
    make.put("output_layer.0.bias", last)
    make.put("output_layer.0.stored_mean", last)
    make.positive("output_layer.0.stored_var", last)
    normalised("output_layer.2", 3, last, 3, 3)
    return make.state


def run_original(state, z, number):
    """What the public generator computes in eval mode."""

    def weight(name):
        w, u = state[f"{name}.weight"], state[f"{name}.u0"]
        matrix = w.reshape(w.shape[0], -1)
        v = F.normalize(u @ matrix)
        u = F.normalize(v @ matrix.t())
        return w / (v @ matrix.t() @ u.t()).squeeze()

    def conv(name, x, padding):
        return F.conv2d(x, weight(name), state.get(f"{name}.bias"), padding=padding)

    def norm(name, x, y):
        mean, var = state[f"{name}.stored_mean"], state[f"{name}.stored_var"]
        out = F.batch_norm(x, mean, var, None, None, False, 0.1, 1e-5)
        gain, bias = (F.linear(y, weight(f"{name}.{part}"))[:, :, None, None] for part in ("gain", "bias"))
        return out * (1 + gain) + bias

    count = 1 + max(int(n.split(".")[1]) for n in state if n.startswith("blocks."))
    embedded = state["shared.weight"][number]
    entering = state["linear.weight"].shape[1]
    conditions = [embedded] * count
    if z.shape[1] != entering:
        z, *parts = z.split(entering, 1)
        conditions = [torch.cat([embedded, part], 1) for part in parts]
    h = F.linear(z, weight("linear"), state["linear.bias"]).view(len(z), -1, 4, 4)
    for i, y in enumerate(conditions):
        x, block = h, f"blocks.{i}.0"
        h = F.interpolate(F.relu(norm(f"{block}.bn1", x, y)), scale_factor=2)
        h = conv(f"{block}.conv1", h, 1)
        h = conv(f"{block}.conv2", F.relu(norm(f"{block}.bn2", h, y)), 1)
        h = h + conv(f"{block}.conv_sc", F.interpolate(x, scale_factor=2), 0)
        if f"blocks.{i}.1.gamma" in state:
            h = attend(
                h,
                *(weight(f"blocks.{i}.1.{part}") for part in ("theta", "phi", "g", "o")),
                state[f"blocks.{i}.1.gamma"],
            )
    name = "output_layer.0"
    mean, var = state[f"{name}.stored_mean"], state[f"{name}.stored_var"]
    h = F.batch_norm(h, mean, var, state[f"{name}.gain"], state[f"{name}.bias"], False, 0.1, 1e-5)
    return torch.tanh(conv("output_layer.2", F.relu(h), 1))


def attend(x, theta, phi, g, o, gamma):
    b, c, height, width = x.shape
    query = F.conv2d(x, theta).view(b, c // 8, height * width)
    key = F.max_pool2d(F.conv2d(x, phi), 2).view(b, c // 8, height * width // 4)
    value = F.max_pool2d(F.conv2d(x, g), 2).view(b, c // 2, height * width // 4)
    share = torch.einsum("bck,bcl->bkl", query, key).softmax(-1)
    looked = torch.einsum("bcl,bkl->bck", value, share).view(b, c // 2, height, width)
    return x + gamma * F.conv2d(looked, o)


def converted(*, widths=(16, 8, 4), attention=1):
    """The original's as converted from TensorFlow: `GBlock.0.conv0.module.weight_bar`."""
    make = Maker(1)

    def normalised(name, *shape, bias=True):
        make.put(f"{name}.module.weight_bar", *shape)
        make.put(f"{name}.module.weight_u", shape[0])
        make.put(f"{name}.module.weight_v", shape[0])
        if bias:
            make.put(f"{name}.module.bias", shape[0])

    make.put("linear.weight", CLASS_DIM, CLASSES, spread=1.0)
    normalised("G_linear", 16 * WIDE * widths[0], CHUNK)
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        block = f"GBlock.{i}"
        normalised(f"{block}.conv0", WIDE * after, WIDE * before, 3, 3)
        normalised(f"{block}.conv1", WIDE * after, WIDE * after, 3, 3)
        normalised(f"{block}.conv_sc", WIDE * after, WIDE * before, 1, 1)
        for name, channels in (("HyperBN", WIDE * before), ("HyperBN_1", WIDE * after)):
            make.put(f"{block}.{name}.bn.running_mean", channels)
            make.positive(f"{block}.{name}.bn.running_var", channels)
            make.state[f"{block}.{name}.bn.num_batches_tracked"] = torch.tensor(3.0)
            normalised(f"{block}.{name}.gamma_embed", channels, CHUNK + CLASS_DIM, bias=False)
            normalised(f"{block}.{name}.beta_embed", channels, CHUNK + CLASS_DIM, bias=False)
    c = WIDE * widths[attention]
    for part, shape in {"theta": (c // 8, c), "phi": (c // 8, c), "g": (c // 2, c), "o_conv": (c, c // 2)}.items():
        normalised(f"attention.{part}", *shape, 1, 1, bias=False)
    make.put("attention.gamma", 1, near=0.7)
    last = WIDE * widths[-1]
    make.put("ScaledCrossReplicaBN.weight", last, near=1.0)
    make.put("ScaledCrossReplicaBN.bias", last)
    make.put("ScaledCrossReplicaBN.running_mean", last)
    make.positive("ScaledCrossReplicaBN.running_var", last)
    normalised("colorize", 3, last, 3, 3)
    return make.state


def run_converted(state, z, number, attention=1):
    """What its public generator computes; the attention stands before block `attention`, as its code says."""

    def layer(name):
        w, u = state[f"{name}.module.weight_bar"], state[f"{name}.module.weight_u"]
        matrix = w.reshape(len(w), -1)
        v = matrix.t() @ u
        v = v / (v.norm() + 1e-4)
        u = matrix @ v
        u = u / (u.norm() + 1e-4)
        return w / u.dot(matrix.mv(v)), state.get(f"{name}.module.bias")

    def norm(name, x, y):
        out = F.batch_norm(x, state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"], eps=1e-4)
        gamma, beta = (F.linear(y, *layer(f"{name}.{part}_embed"))[:, :, None, None] for part in ("gamma", "beta"))
        return (1 + gamma) * out + beta

    count = 1 + max(int(n.split(".")[1]) for n in state if n.startswith("GBlock."))
    codes = z.chunk(count + 1, 1)
    embedded = F.linear(F.one_hot(number, CLASSES).float(), state["linear.weight"])
    h = F.linear(codes[0], *layer("G_linear"))
    h = h.view(len(z), 4, 4, h.shape[1] // 16).permute(0, 3, 1, 2)
    for i in range(count):
        if i == attention:
            h = attend(
                h,
                *(layer(f"attention.{part}")[0] for part in ("theta", "phi", "g", "o_conv")),
                state["attention.gamma"],
            )
        x, y = h, torch.cat([codes[i + 1], embedded], 1)
        h = F.interpolate(F.relu(norm(f"GBlock.{i}.HyperBN", x, y)), scale_factor=2)
        h = F.conv2d(h, *layer(f"GBlock.{i}.conv0"), padding=1)
        h = F.conv2d(F.relu(norm(f"GBlock.{i}.HyperBN_1", h, y)), *layer(f"GBlock.{i}.conv1"), padding=1)
        h = h + F.conv2d(F.interpolate(x, scale_factor=2), *layer(f"GBlock.{i}.conv_sc"))
    last = "ScaledCrossReplicaBN"
    mean, var, gain, bias = (state[f"{last}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    h = F.relu(F.batch_norm(h, mean, var, gain, bias, eps=1e-4))
    return torch.tanh(F.conv2d(h, *layer("colorize"), padding=1))


def deep(*, pairs=((16, 16), (16, 8), (8, 8), (8, 1)), attention=2, z_dim=CLASS_DIM):
    """The deep generator's: `generator.layers.0.conv_0.weight_orig`, 51 rows of statistics a norm."""
    make = Maker(2)
    condition = z_dim + CLASS_DIM

    def normalised(name, *shape, bias=True):
        make.put(f"{name}.weight_orig", *shape)
        make.put(f"{name}.weight_u", shape[0])
        make.put(f"{name}.weight_v", torch.Size(shape[1:]).numel())
        # As the power method leaves them: no weight is divided by almost nothing.
        u, _, v = torch.linalg.svd(make.state[f"{name}.weight_orig"].flatten(1), full_matrices=False)
        make.state[f"{name}.weight_u"] = F.normalize(u[:, 0] + 0.1 * make.state[f"{name}.weight_u"], dim=0)
        make.state[f"{name}.weight_v"] = F.normalize(v[0] + 0.1 * make.state[f"{name}.weight_v"], dim=0)
        if bias:
            make.put(f"{name}.bias", shape[0])

    def statistics(name, channels):
        make.put(f"{name}.running_means", STEPS, channels)
        make.positive(f"{name}.running_vars", STEPS, channels)

    make.put("embeddings.weight", CLASS_DIM, CLASSES, spread=1.0)
    normalised("generator.gen_z", 16 * WIDE * pairs[0][0], condition)
    layer = 0
    for i, (before, after) in enumerate(pairs):
        if i == attention:
            c, name = WIDE * before, f"generator.layers.{layer}"
            for part, shape in {
                "theta": (c // 8, c),
                "phi": (c // 8, c),
                "g": (c // 2, c),
                "o_conv": (c, c // 2),
            }.items():
                normalised(f"{name}.snconv1x1_{part}", *shape, 1, 1, bias=False)
            make.put(f"{name}.gamma", 1, near=0.7)
            layer += 1
        name, inner = f"generator.layers.{layer}", WIDE * before // 4
        for j, channels in enumerate((WIDE * before, inner, inner, inner)):
            statistics(f"{name}.bn_{j}", channels)
            normalised(f"{name}.bn_{j}.scale", channels, condition, bias=False)
            normalised(f"{name}.bn_{j}.offset", channels, condition, bias=False)
        normalised(f"{name}.conv_0", inner, WIDE * before, 1, 1)
        normalised(f"{name}.conv_1", inner, inner, 3, 3)
        normalised(f"{name}.conv_2", inner, inner, 3, 3)
        normalised(f"{name}.conv_3", WIDE * after, inner, 1, 1)
        layer += 1
    last = WIDE * pairs[-1][1]
    statistics("generator.bn", last)
    make.put("generator.bn.weight", last, near=1.0)
    make.put("generator.bn.bias", last)
    normalised("generator.conv_to_rgb", last, last, 3, 3)
    return make.state


def run_deep(state, z, number, row):
    """What the public generator computes with row `row` of its statistics; every second block doubles the side."""

    def layer(name):
        w, u, v = (state[f"{name}.weight_{part}"] for part in ("orig", "u", "v"))
        return w / u.dot(w.reshape(len(w), -1).mv(v)), state.get(f"{name}.bias")

    def norm(name, x):
        mean, var = state[f"{name}.running_means"][row], state[f"{name}.running_vars"][row]
        scale, offset = (F.linear(y, *layer(f"{name}.{part}"))[:, :, None, None] for part in ("scale", "offset"))
        out = (x - mean[None, :, None, None]) / (var[None, :, None, None] + 1e-4).sqrt()
        return F.relu(out * (1 + scale) + offset)

    y = torch.cat([z, F.linear(F.one_hot(number, CLASSES).float(), state["embeddings.weight"])], 1)
    h = F.linear(y, *layer("generator.gen_z"))
    h = h.view(len(z), 4, 4, h.shape[1] // 16).permute(0, 3, 1, 2)
    blocks = 0
    for k in range(1 + max(int(n.split(".")[2]) for n in state if n.startswith("generator.layers."))):
        name = f"generator.layers.{k}"
        if f"{name}.gamma" in state:
            parts = (layer(f"{name}.snconv1x1_{part}")[0] for part in ("theta", "phi", "g", "o_conv"))
            h = attend(h, *parts, state[f"{name}.gamma"])
            continue
        x, doubles = h, blocks % 2 == 1
        blocks += 1
        h = F.conv2d(norm(f"{name}.bn_0", x), *layer(f"{name}.conv_0"))
        h = norm(f"{name}.bn_1", h)
        h = F.conv2d(F.interpolate(h, scale_factor=2) if doubles else h, *layer(f"{name}.conv_1"), padding=1)
        h = F.conv2d(norm(f"{name}.bn_2", h), *layer(f"{name}.conv_2"), padding=1)
        h = F.conv2d(norm(f"{name}.bn_3", h), *layer(f"{name}.conv_3"))
        x = x[:, : h.shape[1]]
        h = h + (F.interpolate(x, scale_factor=2) if doubles else x)
    mean, var = state["generator.bn.running_means"][row], state["generator.bn.running_vars"][row]
    h = F.relu(F.batch_norm(h, mean, var, state["generator.bn.weight"], state["generator.bn.bias"], eps=1e-4))
    return torch.tanh(F.conv2d(h, *layer("generator.conv_to_rgb"), padding=1)[:, :3])
