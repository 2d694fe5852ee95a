"""Texts of a megabyte in files of others: what is said of them stays a short line."""

from __future__ import annotations

import copy

import pytest
import torch
from bundle_helpers import document, make_model, replace_member, write_document
from safetensors.torch import save_file

from posthoc_inn import Interpreter
from posthoc_inn.errors import PosthocInnError
from posthoc_inn.weights import load_weights

LONG = "\x1b[31m$x^$\n" * 100_000
ROOMY = 600
"""Letters of a message at the most, the file's path included."""


def leaves(value, path=()):
    """Yield the path of each text in nested data; the model's tensors are many, and alike."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(inner, str):
            yield (*path, key)
        elif key != "tensors":
            yield from leaves(inner, (*path, key))


def check(error):
    text = str(error)
    assert len(text) < ROOMY
    assert text.isprintable()


@pytest.mark.parametrize("long", [LONG[:20_000], "a" * 1000], ids=["long", "as long as is allowed"])
def test_a_long_text_anywhere_in_a_bundle_is_told_of_in_a_short_line(saved, long):
    whole, model, refused = document(saved), make_model(), 0
    for path in leaves(whole):
        changed = copy.deepcopy(whole)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = long
        write_document(saved, changed)
        try:
            Interpreter.load(saved, model=model)
        except PosthocInnError as error:
            check(error)
            refused += 1
    assert refused > 7


def test_a_megabyte_in_a_bundle_is_told_of_in_a_short_line(saved):
    changed = document(saved)
    changed["flow"]["kind"] = LONG
    write_document(saved, changed)
    with pytest.raises(PosthocInnError, match=r"There is no flow '\\x1b") as error:
        Interpreter.load(saved, model=make_model())
    check(error.value)


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"x": torch.ones(1)}, {"format": LONG}),
        ({"x": torch.ones(1)}, {LONG: "pt"}),
        ({LONG: torch.ones(1)}, None),
        ({f"{k}" * 500: torch.ones(1) for k in range(1000, 2000)}, None),
    ],
    ids=["value of the metadata", "key of the metadata", "name", "many names"],
)
def test_long_texts_in_a_safetensors_file_are_told_of_in_a_short_line(saved, tmp_path, tensors, metadata):
    file = tmp_path / "w.safetensors"
    save_file(tensors, str(file), metadata=metadata)
    with pytest.raises(PosthocInnError, match="do not fit the Sequential") as error:
        load_weights(make_model(), file)
    check(error.value)
    replace_member(saved, "weights.safetensors", file.read_bytes())
    with pytest.raises(PosthocInnError, match=r"do not belong together|not those that bundle\.json describes") as error:
        Interpreter.load(saved, model=make_model())
    check(error.value)


def test_long_keys_of_a_pytorch_file_are_told_of_in_a_short_line(tmp_path):
    torch.save({LONG: 1, **dict.fromkeys(range(5000))}, tmp_path / "w.pth")
    with pytest.raises(PosthocInnError, match="holds no weights: found a dict with the keys") as error:
        load_weights(make_model(), tmp_path / "w.pth")
    check(error.value)
