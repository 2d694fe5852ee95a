import os
import subprocess
import sys

import pytest

DRAW = (
    "import os, sys\n"
    "import posthoc_inn.interpreter, posthoc_inn.report, posthoc_inn.sweep, posthoc_inn.cli.fit.run\n"
    "from posthoc_inn.drawing import new_figure, to_png\n"
    "figure = new_figure(1, 1); figure.add_subplot().plot([0, 1])\n"
    "assert to_png(figure).startswith(b'\\x89PNG')\n"
    "print(os.environ.get('MPLBACKEND'))\n"
)


@pytest.mark.parametrize("backend", [None, "module://a_notebooks.own_backend"])
def test_figures_are_drawn_whatever_backend_is_asked_for(backend):
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | (
        {} if backend is None else {"MPLBACKEND": backend}
    )
    run = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(backend)
