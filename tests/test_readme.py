"""README.md and the guide tell the truth: their Python runs in order, and their commands and options exist."""

from __future__ import annotations

import click
import pytest
import torch
from documents import ROOT, Block, blocks, check_command, command_lines, few_steps_in, run, targets, what_readers_bring

DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "guide.md"]
"""The pages in the folders of docs/ have tests of their own in tests/docs."""
EACH_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)


@pytest.fixture
def few_steps(monkeypatch, tmp_path):
    few_steps_in(monkeypatch, tmp_path)


@EACH_DOCUMENT
def test_the_python_of_a_document_runs_in_order(document, few_steps, capsys):
    python = [b for b in blocks(document) if b.language in ("python", "py")]
    assert python, "no block of Python: has the way of fencing changed?"
    namespace = what_readers_bring()
    before = {k: v.clone() for k, v in namespace["model"].state_dict().items()}
    for block in python:
        run(document, block, namespace)
    for name, value in namespace["model"].state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=f"the document changes the model's {name}")


def test_a_name_that_nobody_has_is_told():
    block = Block("python", "print(colour)\n", 7)
    with pytest.raises(
        pytest.fail.Exception, match=r"README.md, block of line 7: name 'colour' is not defined.*brings?"
    ):
        run(ROOT / "README.md", block, {})


@EACH_DOCUMENT
def test_every_command_of_a_document_exists_with_its_options(document):
    found = list(command_lines(document))
    assert found, "no command: has the way of fencing changed?"
    for number, line in found:
        if line.startswith("make"):
            assert set(line.split("#")[0].split()[1:]) <= targets(), f"{document.name}, line {number}: {line}"
            continue
        try:
            check_command(line)
        except click.UsageError as error:
            pytest.fail(f"{document.name}, line {number}: {line}: {error.format_message()}")


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("posthoc-inn fit --no-such-option 3", "No such option"),
        ("posthoc-inn paint --out x", "There is no command 'paint'"),
        ("posthoc-inn layers there", "takes no 'there'"),
        ("posthoc-inn fit --out", "requires an argument"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line, match):
    with pytest.raises(click.UsageError, match=match):
        check_command(line)
