"""The one command `vidmotion`: each of its subcommands stands for a module."""

import importlib.util
import subprocess
import sys

import pytest

from vidmotion import __main__ as command
from vidmotion import weights
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED


def outcome(*words):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "vidmotion", *words],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


def test_every_command_has_a_module():
    for module, what, _ in command.COMMANDS.values():
        found = importlib.util.find_spec(module)
        assert found is not None and what
        if found.submodule_search_locations:  # a package is run by its __main__
            assert importlib.util.find_spec(f"{module}.__main__") is not None


@pytest.mark.parametrize("words", [[], ["fly"], ["train"]])
def test_what_is_no_command_line_is_refused(words):
    code, _, said = outcome(*words)
    assert code == EXIT_REFUSED and "Traceback" not in said
    assert ("--config=" if words == ["train"] else "usage: vidmotion COMMAND") in said


def test_help_and_a_command():
    code, said, _ = outcome("--help")
    assert code == EXIT_DONE and all(f"  {name} " in said for name in command.COMMANDS)
    code, said, _ = outcome("weights")
    assert code == EXIT_DONE and [line.split(":")[0] for line in said.splitlines()] == [
        *weights.names()
    ]
