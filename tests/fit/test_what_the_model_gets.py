"""The model gets what the user's own loader would give it: number type, range, layout; and so do queries."""

import pytest
import torch
from small_parts import TINY
from torch import nn

from posthoc_inn import DataError, Interpreter, ShapeError

SEEN = []
"""What networks were given: outside of them, where nothing puts it back."""


class Remembering(nn.Module):
    """A network that notes what it was given, and scales bytes itself where it is asked to."""

    def __init__(self, dtype=torch.float32, takes_bytes=False):
        super().__init__()
        SEEN.clear()
        self.takes_bytes = takes_bytes
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 4, 5, 2), nn.ReLU()).to(dtype)
        self.head = nn.Linear(4 * 5 * 5, 5).to(dtype)

    def forward(self, x):
        SEEN.append((x.dtype, x.is_contiguous(), float(x.float().max())))
        if self.takes_bytes:
            if x.dtype != torch.uint8:
                raise TypeError(f"bytes are needed, got {x.dtype}")
            x = x.float() / 255
        return self.head(self.body(x).view(-1, 4 * 5 * 5))


def images(n=64):
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(coarse, (32, 32), mode="bilinear")


def fitted(model, data, **more):
    return Interpreter(model.eval(), "body.2", preset=TINY, precision="32", **more).fit(data)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_model_of_another_number_type_gets_its_own(dtype):
    model = Remembering(dtype)
    interpreter = fitted(model, images().to(dtype))
    assert interpreter.sample(images(2).to(dtype), n=2).dtype == torch.float32
    assert {seen for seen, _, _ in SEEN} == {dtype}


def test_a_canonical_model_of_another_number_type_gets_its_own():
    from small_parts import SPEC

    model = Remembering(torch.bfloat16)
    fitted(model, images(), spec=SPEC.replace(size=(32, 32)))
    assert {seen for seen, _, _ in SEEN} == {torch.bfloat16}


def test_a_model_that_scales_bytes_gets_bytes_and_its_decoded_pictures_too():
    model = Remembering(takes_bytes=True)
    data = images().mul(255).round().to(torch.uint8)
    interpreter = fitted(model, data)
    interpreter.sample(data[:2], n=2)
    assert {seen for seen, _, _ in SEEN} == {torch.uint8}
    assert max(top for _, _, top in SEEN) > 100


def test_a_model_that_cannot_take_bytes_gets_them_in_the_unit_interval():
    model = Remembering()
    data = images().mul(255).round().to(torch.uint8)
    interpreter = fitted(model, data)
    after = len(SEEN)
    same = interpreter.invariances(data[:3])
    assert torch.allclose(same, interpreter.invariances(data[:3].float() / 255), atol=1e-4)
    assert all(dtype == torch.float32 and top <= 1.01 for dtype, _, top in SEEN[after:])


def test_pictures_are_laid_out_as_a_view_needs_them():
    model = Remembering()  # its forward calls view, which refuses channels-last tensors
    fitted(model, images())
    assert all(contiguous for _, contiguous, _ in SEEN)


def test_the_number_type_is_kept_in_a_bundle(tmp_path):
    model = Remembering(torch.float64)
    interpreter = fitted(model, images().double())
    interpreter.save(tmp_path / "bundle")
    loaded = Interpreter.load(tmp_path / "bundle", model=model)
    assert loaded.adapter_ == interpreter.adapter_
    assert torch.equal(loaded.sample(images(2).double(), n=2), interpreter.sample(images(2).double(), n=2))


@pytest.fixture(scope="module")
def interpreter():
    return fitted(Remembering(), images())


QUESTIONS = ("sample", "invariances", "reconstruct", "log_likelihood")


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda x: x * float("nan"), DataError, "NaN"),
        (lambda x: x * 255, DataError, r"values from .* to 2\d\d.*\[0, 1\]"),
        (lambda x: x[:, :1], ShapeError, "3 channels"),
        (lambda x: x[0], ShapeError, r"\(B, C, H, W\)"),
        (lambda x: (x * 255).long(), DataError, "int64"),
        (lambda x: x.numpy(), ShapeError, "ndarray"),
    ],
)
def test_a_query_that_fit_would_have_refused_is_refused(interpreter, question, spoil, error, match):
    with pytest.raises(error, match=match):
        getattr(interpreter, question)(spoil(images(2)))


def test_noisy_and_brightened_queries_are_taken(interpreter):
    noisy = images(4) + 0.1 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.isfinite(interpreter.sample(noisy, n=1)).all()
    assert torch.isfinite(interpreter.sample(images(2) * 1.3, n=1)).all()


def test_a_query_after_a_normalised_fit_is_judged_by_that_normalisation():
    mean, std = 0.5, 0.25
    interpreter = fitted(Remembering(), (images() - mean) / std, mean=(mean,), std=(std,))
    interpreter.sample((images(2) - mean) / std, n=1)
    with pytest.raises(DataError, match=r"about \[-2, 2\]"):
        interpreter.sample(images(2) * 255, n=1)
