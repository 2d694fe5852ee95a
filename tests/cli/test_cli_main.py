from __future__ import annotations

import os
import subprocess
import sys
import warnings

import click
import pytest

from posthoc_inn.cli import main as main_module
from posthoc_inn.cli.main import COMMANDS, LazyGroup, cli
from posthoc_inn.errors import DataError, PosthocInnWarning
from posthoc_inn.plugins import get_plugin_manager

CHILD = """
import resource, sys
from posthoc_inn.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 0, end.code
heavy = [name for name in ("torch", "matplotlib", "sklearn", "torchvision", "timm", "rich") if name in sys.modules]
used = resource.getrusage(resource.RUSAGE_SELF)
print("HEAVY", heavy, "SECONDS", used.ru_utime + used.ru_stime)
"""


@pytest.mark.parametrize(
    "args", [[], ["fit"], ["layers"], ["sample"], ["plugins"], ["doctor"]], ids=lambda a: " ".join(a)
)
def test_asking_for_help_imports_nothing_heavy(args):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *args, "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Usage: posthoc-inn" in done.stdout
    assert "HEAVY []" in done.stdout
    assert float(done.stdout.rsplit("SECONDS", 1)[1]) < 0.4


def test_plugins_can_be_listed_without_importing_torch():
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "plugins", "--json"], capture_output=True, text=True, check=False, timeout=60
    )
    assert "HEAVY []" in done.stdout, done.stderr


def fail_with(error):
    @click.command("fails")
    def command():
        raise error

    return command


@pytest.fixture
def failing(monkeypatch):
    def use(error):
        monkeypatch.setitem(cli.commands, "fails", fail_with(error))

    return use


def test_an_error_of_ours_becomes_one_line_and_exit_code_1(ask, failing):
    failing(DataError("There are\n  no images."))
    answer = ask("fails")
    assert (answer.code, answer.out, answer.err) == (1, "", "Error: There are no images.\n")


def test_a_defect_becomes_one_line_that_says_how_to_get_the_traceback(ask, failing):
    failing(KeyError("nothing"))
    answer = ask("fails")
    assert answer.code == 70
    assert answer.err.count("\n") == 1
    assert "KeyError" in answer.err
    assert "POSTHOC_INN_DEBUG=1" in answer.err


def test_what_the_machine_lacks_is_no_defect(ask, failing):
    failing(OSError(28, "No space left on device", "/full/t.safetensors"))
    answer = ask("fails")
    assert (answer.code, answer.err) == (1, "Error: [Errno 28] No space left on device: '/full/t.safetensors'\n")
    failing(MemoryError())
    assert "not enough memory" in ask("fails").err


def test_a_terminal_without_the_signs_gets_question_marks():
    code = (
        "import click; from posthoc_inn.cli import main as m\n"
        "m.cli.commands['say'] = click.Command('say', callback=lambda: print('\u2713 done'))\n"
        "m.main(['say'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, b"? done")


def test_the_traceback_is_there_on_request(failing, monkeypatch):
    failing(KeyError("nothing"))
    monkeypatch.setenv("POSTHOC_INN_DEBUG", "1")
    with pytest.raises(KeyError, match="nothing"):
        main_module.main(["fails"])


def test_ctrl_c_gives_exit_code_130_and_what_to_do_next(ask, failing):
    failing(KeyboardInterrupt("Interrupted. To go on: ..."))
    answer = ask("fails")
    assert (answer.code, answer.err.strip()) == (130, "Interrupted. To go on: ...")


def test_a_warning_of_ours_is_one_line(ask, monkeypatch):
    @click.command("warns")
    def command():
        warnings.simplefilter("always")
        warnings.warn(PosthocInnWarning("mind\nthis"), stacklevel=1)

    monkeypatch.setitem(cli.commands, "warns", command)
    assert ask("warns").err == "Warning: mind this\n"


def test_a_misspelt_command_gets_the_nearest_name(ask):
    answer = ask("sampel")
    assert answer.code == 2
    assert "Did you mean 'sample'?" in answer.err


def test_wrong_usage_has_exit_code_2(ask):
    assert ask("fit", "--steps", "0").code == 2


def test_every_command_is_what_its_module_holds():
    group = LazyGroup("posthoc-inn")
    for name in COMMANDS:
        assert isinstance(group.get_command(click.Context(group), name), click.Command)


def test_a_plugins_command_stands_beside_the_built_in_ones(ask, monkeypatch):
    @click.command("extra")
    def command():
        """Say hello."""
        click.echo("hello")

    monkeypatch.setitem(get_plugin_manager().commands, "extra", ("a-plugin", command))
    monkeypatch.setattr(cli, "commands", {})
    assert "Say hello." in ask("--help").out
    assert ask("extra").out == "hello\n"


def test_demo_is_another_name_of_fit(ask):
    assert ask("demo", "--help").out.replace("posthoc-inn demo", "posthoc-inn fit") == ask("fit", "--help").out


def test_what_was_typed_is_not_repeated_without_end(ask):
    answer = ask("layers", "--num-classes", "a" * 5000)
    assert answer.code == 2
    assert len(answer.err) < 1600
    assert answer.err.rstrip().endswith("is not a valid integer range.")
    answer = ask("fit", "--data", "a" * 5000)
    assert answer.code == 1
    assert len(answer.err) < 1600
