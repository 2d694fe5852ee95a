"""Networks of `@vladmandic/face-api` (npm, MIT) in torch: recognition, age and gender, expression, 68 landmarks.

Each is two files: a JSON manifest that names tensors in order, and their values one after the other, most of them as
uint8 with a scale and a minimum. The networks follow the package's TypeScript sources.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (122.782, 117.001, 104.298)
EXPRESSIONS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
DTYPES = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1"), "uint16": np.dtype("<u2")}


def read_manifest(directory: str | Path, name: str) -> dict[str, Tensor]:
    """Return the tensors of `name`, float32, as TensorFlow lays them out (filters: height, width, in, out).

    Raises:
        SystemExit: Files are missing, cut short, of a kind that is not read, or lie outside the directory.
    """
    folder = Path(directory)
    file = folder / f"{name}-weights_manifest.json"
    if not file.is_file():
        raise SystemExit(f"{file} is not there: run `photo_faces.py setup --parts DIR` first.")
    found = {}
    try:
        for group in json.loads(file.read_text(encoding="utf-8")):
            names = [str(path) for path in group["paths"]]
            if any(Path(path).name != path for path in names):
                raise ValueError(f"its paths {names} are no plain file names")
            data = b"".join((folder / path).read_bytes() for path in names)
            start = 0
            for entry in group["weights"]:
                quantized = entry.get("quantization")
                kind = DTYPES[quantized["dtype"] if quantized else entry["dtype"]]
                values = np.frombuffer(data, kind, math.prod(entry["shape"]), start)
                start += values.nbytes
                scaled = values * np.float32(quantized["scale"]) + np.float32(quantized["min"]) if quantized else values
                found[str(entry["name"])] = torch.from_numpy(scaled.astype(np.float32).reshape(entry["shape"]))
            if start != len(data):
                raise ValueError(f"it names {start} bytes, its files have {len(data)}")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SystemExit(f"{file} is no weights manifest that can be read: {error}.") from error
    return found


def _filters(values: Tensor) -> Tensor:
    """TensorFlow's filters (height, width, in, out) as torch's (out, in, height, width)."""
    return values.permute(3, 2, 0, 1).contiguous()


class _Reader:
    """Layers with the weights of a manifest; knows afterwards which were not used."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.left = dict(weights)

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise SystemExit(f"The weights have no {name!r}; this is another network.")
        return self.left.pop(name)

    def conv(self, name: str, stride: int = 1, padding: int = 0, groups: int = 1, bias: bool = True) -> nn.Conv2d:
        depthwise = groups > 1
        weight = self.take(name if not bias else f"{name}/filters")
        weight = weight.permute(2, 3, 0, 1).contiguous() if depthwise else _filters(weight)
        layer = nn.Conv2d(
            groups if depthwise else weight.shape[1], weight.shape[0], weight.shape[2], stride, padding,
            groups=groups, bias=bias,
        )  # fmt: skip
        layer.weight = nn.Parameter(weight)
        if bias:
            layer.bias = nn.Parameter(self.take(f"{name}/bias"))
        return layer

    def linear(self, name: str, bias: bool = True) -> nn.Linear:
        weight = self.take(f"{name}/weights" if bias else name)
        layer = nn.Linear(*weight.shape, bias=bias)
        layer.weight = nn.Parameter(weight.T.contiguous())
        if bias:
            layer.bias = nn.Parameter(self.take(f"{name}/bias"))
        return layer

    def end(self) -> None:
        if self.left:
            raise SystemExit(f"The weights have {sorted(self.left)[:3]} too; this is another network.")


def normal_input(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1], RGB, as all these networks want them."""
    mean = torch.tensor(MEAN, dtype=pictures.dtype, device=pictures.device).view(3, 1, 1)
    return (pictures * 255 - mean) / 255


# ---- recognition: a residual network after dlib's


class _Scaled(nn.Module):
    """Convolution, a scale and shift a channel."""

    def __init__(self, read: _Reader, name: str, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = read.conv(f"{name}/conv", stride, padding)
        self.weight = nn.Parameter(read.take(f"{name}/scale/weights").view(-1, 1, 1))
        self.bias = nn.Parameter(read.take(f"{name}/scale/biases").view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) * self.weight + self.bias
        return out


class _Residual(nn.Module):
    def __init__(self, read: _Reader, name: str) -> None:
        super().__init__()
        self.down = "down" in name
        self.conv1 = _Scaled(read, f"{name}/conv1", 2, 0) if self.down else _Scaled(read, f"{name}/conv1")
        self.conv2 = _Scaled(read, f"{name}/conv2")

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.conv1(x)))
        if self.down:
            x = F.avg_pool2d(x, 2)
            # Pooled maps are larger by one; they may also have fewer channels.
            out = F.pad(out, (0, x.shape[3] - out.shape[3], 0, x.shape[2] - out.shape[2]))
            x = F.pad(x, (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
        return F.relu(out + x)


class FaceRecognition(nn.Module):
    """Embedding (B, 128) of faces (B, 3, 150, 150) in [0, 1]; one person: closer than 0.6, says its author."""

    BLOCKS = (
        "conv32_1", "conv32_2", "conv32_3", "conv64_down", "conv64_1", "conv64_2", "conv64_3", "conv128_down",
        "conv128_1", "conv128_2", "conv256_down", "conv256_1", "conv256_2", "conv256_down_out",
    )  # fmt: skip

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        read = _Reader(weights)
        self.stem = _Scaled(read, "conv32_down", 2, 0)
        self.blocks = nn.Sequential(*[_Residual(read, name) for name in self.BLOCKS])
        self.fc = read.linear("fc", bias=False)
        read.end()

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(normal_input(x))), 3, 2)
        out: Tensor = self.fc(self.blocks(x).mean((2, 3)))
        return out


# ---- the small ones: separable convolutions


class _Separable(nn.Module):
    def __init__(self, read: _Reader, name: str, stride: int = 1) -> None:
        super().__init__()
        channels = read.left[f"{name}/depthwise_filter"].shape[2] if f"{name}/depthwise_filter" in read.left else 1
        self.same = stride == 1
        self.depth = read.conv(f"{name}/depthwise_filter", stride, int(self.same), channels, bias=False)
        self.point = read.conv(f"{name}/pointwise_filter", bias=False)
        self.bias = nn.Parameter(read.take(f"{name}/bias").view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.point(self.depth(x if self.same else _pad(x))) + self.bias
        return out


def _pad(x: Tensor, value: float = 0.0) -> Tensor:
    """TensorFlow's "same" for a kernel of 3 at a stride of 2 over an even side: a row below, a column to the right."""
    return F.pad(x, (0, 1, 0, 1), value=value)


class _Reduction(nn.Module):
    def __init__(self, read: _Reader, name: str, activate: bool = True) -> None:
        super().__init__()
        self.activate = activate
        self.first, self.second = (
            _Separable(read, f"{name}/separable_conv0"),
            _Separable(read, f"{name}/separable_conv1"),
        )
        self.expansion = read.conv(f"{name}/expansion_conv", 2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(F.relu(self.first(F.relu(x) if self.activate else x)))
        total: Tensor = F.max_pool2d(_pad(out, -math.inf), 3, 2) + self.expansion(x)
        return total


class _Main(nn.Module):
    def __init__(self, read: _Reader, name: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_Separable(read, f"{name}/separable_conv{k}") for k in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv in self.convs:
            out = conv(F.relu(out))
        return out + x


class AgeGender(nn.Module):
    """Age in years and the score of male against female, (B, 2), of faces (B, 3, 112, 112) in [0, 1]."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        read = _Reader(weights)
        self.conv = read.conv("entry_flow/conv_in", 2)
        self.entry = nn.Sequential(
            _Reduction(read, "entry_flow/reduction_block_0", activate=False),
            _Reduction(read, "entry_flow/reduction_block_1"),
            _Main(read, "middle_flow/main_block_0"), _Main(read, "middle_flow/main_block_1"),
            _Reduction(read, "exit_flow/reduction_block"), _Separable(read, "exit_flow/separable_conv"),
        )  # fmt: skip
        self.age, self.gender = read.linear("fc/age"), read.linear("fc/gender")
        read.end()

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(F.relu(self.conv(_pad(normal_input(x)))))
        x = F.avg_pool2d(F.relu(x), 7, 2).flatten(1)
        scores = self.gender(x)
        return torch.stack([self.age(x)[:, 0], scores[:, 0] - scores[:, 1]], dim=1)


class _Dense(nn.Module):
    def __init__(self, read: _Reader, name: str, first: bool = False) -> None:
        super().__init__()
        self.first = first
        self.conv0 = read.conv(f"{name}/conv0", 2) if first else _Separable(read, f"{name}/conv0", 2)
        self.convs = nn.ModuleList(_Separable(read, f"{name}/conv{k}") for k in (1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        total = F.relu(self.conv0(_pad(x) if self.first else x))
        # The next convolution sees the sum of all before it; the first of them sees conv0 alone.
        out = total
        for conv in self.convs:
            total = total + conv(out)
            out = F.relu(total)
        return out


class DenseFace(nn.Module):
    """Scores (B, 7) of EXPRESSIONS, or 68 landmarks (B, 136) as x, y shares of the side, of faces (B, 3, 112, 112)."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        read = _Reader(weights)
        self.blocks = nn.Sequential(*[_Dense(read, f"dense{k}", first=k == 0) for k in range(4)])
        self.fc = read.linear("fc")
        read.end()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.avg_pool2d(self.blocks(normal_input(x)), 7, 2).flatten(1))
        return out


def load(directory: str | Path, name: str) -> nn.Module:
    """Return "face_recognition", "age_gender", "face_expression" or "face_landmark_68", in evaluation mode."""
    kinds = {"face_recognition": FaceRecognition, "age_gender": AgeGender}
    network: nn.Module = kinds.get(name, DenseFace)(read_manifest(directory, f"{name}_model"))
    return network.eval().requires_grad_(False)
