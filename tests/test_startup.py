"""Exit codes and messages that all commands share."""

import logging

import pytest

from vidmotion import startup
from vidmotion.checkpoint import CheckpointError
from vidmotion.data.records import DatasetError
from vidmotion.errors import ConfigError
from vidmotion.media import MediaError


def outcome(error, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vidmotion"), "propagate", True)

    def work():
        raise error

    return startup.exit_code_of(work, "stopped here"), [r.getMessage() for r in caplog.records]


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("bad field"),
        DatasetError("bad data"),
        CheckpointError("bad state"),
        MediaError("bad film"),
        PermissionError(13, "Permission denied", "/there"),
    ],
)
def test_what_the_user_can_mend_is_one_message_and_2(error, caplog, monkeypatch):
    assert outcome(error, caplog, monkeypatch) == (2, [str(error)])


def test_ctrl_c_is_130(caplog, monkeypatch):
    assert outcome(KeyboardInterrupt(), caplog, monkeypatch) == (130, ["stopped here"])


def test_a_fault_of_ours_keeps_its_traceback(caplog, monkeypatch):
    for error in (RuntimeError("ours"), OSError("no file of the user's")):
        with pytest.raises(type(error)):
            outcome(error, caplog, monkeypatch)


def test_done_is_what_the_work_says():
    assert startup.exit_code_of(lambda: 75, "") == 75


def test_commands_share_a_process():
    # Each has flags of its own: importing one must not claim names that another needs.
    import vidmotion.encode
    import vidmotion.main
    import vidmotion.reenact  # noqa: F401


@pytest.mark.parametrize("text", ["0", "-3", "many"])
def test_at_least(text):
    number = startup.at_least(1)
    assert number("1") == 1
    with pytest.raises((ValueError, startup.argparse.ArgumentTypeError)):
        number(text)
