import ast
import inspect
import subprocess
import sys
from pathlib import Path

import posthoc_inn
from posthoc_inn import errors


def test_every_public_name_is_there():
    for name in posthoc_inn.__all__:
        assert getattr(posthoc_inn, name) is not None
        assert name in dir(posthoc_inn)


def test_type_checkers_see_the_same_names_as_users():
    tree = ast.parse(Path(posthoc_inn.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(posthoc_inn.__all__) - {"__version__"}


def test_what_is_listed_is_what_can_be_imported():
    assert set(posthoc_inn.__all__) == {"__version__", *posthoc_inn._LAZY}


def test_every_error_is_at_the_top_level():
    own = {n for n, v in vars(errors).items() if inspect.isclass(v) and issubclass(v, (Exception, Warning))}
    assert own <= set(posthoc_inn.__all__)


def test_importing_the_package_imports_no_heavy_library():
    code = "import sys, posthoc_inn; print([m for m in ('torch', 'numpy', 'matplotlib') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
