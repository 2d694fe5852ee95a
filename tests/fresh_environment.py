"""An environment of its own, into which the project's packages are installed for real, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation")


def run(command: Iterable[object], **options: object) -> str:
    """Run a command and return what it prints; it must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{words} failed:\n{done.stdout}\n{done.stderr}"
    printed: str = done.stdout
    return printed


def make_environment(base: Path, packages: Iterable[Path], modules: Iterable[str], *, only: str) -> Callable[..., str]:
    """Install `packages` (folders or wheels) into a new environment at `base`.

    Args:
        base: Where.
        packages: What is installed, without dependencies: they are borrowed from the environment of the tests.
        modules: What must come from the new environment.
        only: POSTHOC_INN_PLUGINS of the commands.

    Returns:
        A function that runs the installed `posthoc-inn` there and returns what it prints.
    """
    pytest.importorskip("pip", reason="pip installs the packages; it comes with `python -m venv`")
    pytest.importorskip("hatchling", reason="hatchling builds them; `make test` installs it")
    venv.create(base, with_pip=False, symlinks=os.name != "nt")
    bin_ = base / ("Scripts" if os.name == "nt" else "bin")
    site = sysconfig.get_path("purelib", "venv", {"base": str(base), "platbase": str(base)})
    # torch and the other dependencies are borrowed: a download of gigabytes is not what is tested. Editable
    # installs there are not borrowed, so that the project itself can only come from this environment.
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run([*PIP, "--python", bin_ / "python", "install", *OFFLINE, "--no-compile", "--ignore-installed", *packages])
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment.update(POSTHOC_INN_PLUGINS=only, OMP_NUM_THREADS="1", COLUMNS="200")
    for module in modules:
        file = run([bin_ / "python", "-c", f"import {module} as m; print(m.__file__)"], cwd=base, env=environment)
        assert Path(file.strip()).is_relative_to(base), "the fresh environment must not use the working copy"

    def call(*arguments: object) -> str:
        return run([bin_ / "posthoc-inn", *arguments], cwd=base, env=environment)

    return call
