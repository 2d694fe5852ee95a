"""Runs the tests that the example plugin ships, against the working copy of both."""

import importlib.util
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "posthoc-inn-example-plugin"


def _shipped_tests():
    spec = importlib.util.spec_from_file_location("shipped_tests", EXAMPLE / "tests" / "test_example.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(EXAMPLE))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLE))
    return module


_shipped = _shipped_tests()
globals().update({n: v for n, v in vars(_shipped).items() if n == "manager" or n.startswith("test_")})


def test_the_example_ships_tests():
    assert sum(name.startswith("test_") for name in vars(_shipped)) >= 5
