"""For tests and doctests alike: each starts from the same global seed and must leave torch's switches alone."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent / "tests"


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Look for examples in the packages only: importing every test a second time for none takes seconds."""
    found = yield
    return [c for c in found if type(c) is pytest.Module] if TESTS in file_path.parents else found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests half an hour, where others have the five minutes of pyproject.toml."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


def switches() -> tuple[object, ...]:
    """Return what of torch is global and neither a test nor an example may change."""
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )


@pytest.fixture(autouse=True)
def _torch_state_is_left_alone() -> Iterator[None]:
    before = switches()
    torch.manual_seed(0)
    yield
    assert switches() == before, "a test or the code under it changed a global torch switch"
