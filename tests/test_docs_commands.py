"""docs/commands.py: each command of the pages falls under one rule, blocks are cut as by a shell, and some commands
run."""

import importlib.util
import os
import re
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("docs_commands", ROOT / "docs" / "commands.py")
commands = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(commands)

PAGES = commands.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_command_falls_under_one_rule(page):
    found = commands.read(page)
    assert bool(found) == ("```bash" in page.read_text(encoding="utf-8"))
    for command in found:
        rules = commands.matching(command.text)
        assert len(rules) == 1, f"{page.name}:{command.line}: {command.text}: {rules}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_workdir_belongs_to_one_config(page):
    """Someone who follows a page from top to bottom never trains in the workdir of another config."""
    owner = {}
    for command in commands.read(page):
        text = commands.canonical(command.text)
        given = dict(re.findall(r"--(config|workdir)=(\S+)", text))
        workdir = given.get("workdir", "DIR")
        if re.match(r"vidmotion train|launch/", text) and workdir != "DIR":
            assert owner.setdefault(workdir, given.get("config")) == given.get("config"), text


def test_a_command_without_a_rule_fails(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("```bash\nvidmotion weights\nvidmotion fly --high\n```\n")
    monkeypatch.setattr(commands, "pages", lambda: [page])
    assert commands.main([]) == 1
    assert "page.md:3  vidmotion fly --high\n    not run: it falls under no rule" in (
        capsys.readouterr().out
    )
    assert commands.main(["--match=weights"]) == 0
    assert commands.main(["--page=other"]) == 2


PAGE = """\
Some text, `python -m not.this`.

```bash
first --a=1   # a comment && no command
second 'with # no comment' && third "a && b" "say \\"it\\" # too" &&
    fourth a#b \\# \\
    --more=2 \\
    --yet=3

```

```diff
- nor this
```

   ```bash
   NAME=value sixth --list='1
   2' # seventh
   # all of it a comment
   eighth
   ```
"""


def test_blocks_are_cut_as_a_shell_cuts_them():
    found = [(c.line, c.block, c.text, c.after) for c in commands.parse(PAGE, "page.md")]
    assert found == [
        (4, 0, "first --a=1", False),
        (5, 0, "second 'with # no comment'", False),
        (5, 0, 'third "a && b" "say \\"it\\" # too"', True),
        (6, 0, "fourth a#b \\# --more=2 --yet=3", True),
        (17, 1, "NAME=value sixth --list='1\n   2'", False),
        (20, 1, "eighth", False),
    ]
    with pytest.raises(ValueError, match="not closed: 'x"):
        list(commands.parse("```bash\necho 'x\n```\n", "page.md"))


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (
            "python -m vidmotion.main --config=a --workdir=b",
            "vidmotion train --config=a --workdir=b",
        ),
        ("python -m vidmotion.main --mode=plan --config=a", "vidmotion plan --config=a"),
        ("vidmotion train --config=a", "vidmotion train --config=a"),
        ("python -m vidmotion.data.prepare videos --src=a", "vidmotion prepare videos --src=a"),
        ("python -m vidmotion.weights", "vidmotion weights"),
        ("python -m vidmotion.evaluation.resources", "vidmotion resources"),
        ("python -m vidmotion.nothing", "python -m vidmotion.nothing"),
    ],
)
def test_both_ways_to_name_a_command_are_one(text, known):
    assert commands.canonical(text) == known


def decided(text, drawn=False):
    return commands.decide(commands.Command("page.md", 1, 0, text), drawn)


def test_trainings_are_shortened_and_launchers_say_what_they_would_do():
    def run(text, drawn=False):
        return decided(text, drawn).run

    for given, shortened in {
        "heads:demo": "heads:debug",
        "configs/heads_codec.py": "configs/heads_codec.py:debug",
        "configs/vidtwin.py:size=large": "configs/vidtwin.py:debug,size=large",
        "xnemo:demo,stage=2": "xnemo:debug,stage=2",
    }.items():
        text = "vidmotion train --config={} --workdir=RUN"
        assert run(text.format(given)) == text.format(shortened)
    own = "vidmotion train --config=own:demo,system=bcd,size=64 --workdir=runs/own"
    assert run(own) == f"{own} --config.steps=2"
    assert decided(own).first == ("data/own",)
    slurm = "sbatch --nodes=4 launch/slurm.sbatch --config=heads --workdir=DIR"
    assert run(slurm) == "bash launch/slurm.sbatch --config=heads --workdir=DIR --dry_run"
    moved = "vidmotion reenact --workdir=RUN --content=A.png --motion=B.mp4 --out=C.mp4"
    assert run(moved) == moved and decided(moved).first == ("RUN",)
    assert run(moved, drawn=True) == f"{moved} --box=whole --motion_box=whole"
    assert decided("vidmotion convert vidtwin --src=FILE --out=DIR").why_not == (
        "it needs published weights"
    )


def test_what_is_not_there_is_not_run(monkeypatch):
    sprites = "vidmotion prepare sprites --sheets=DIR --out=data/sprites"
    monkeypatch.delenv("VIDMOTION_SHEETS", raising=False)
    assert decided(sprites).why_not == "it needs VIDMOTION_SHEETS, which is not set"
    monkeypatch.setenv("VIDMOTION_SHEETS", "/sheets")
    assert decided(sprites).run == (
        'vidmotion prepare sprites --sheets="$VIDMOTION_SHEETS" --out=data/sprites'
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert decided("tfds build x").why_not == "it needs tensorflow, which is not installed"


def test_commands_of_a_block_share_a_shell(tmp_path):
    (tmp_path / "below").mkdir()
    shell, log = commands.Shell(tmp_path, tmp_path, limit=20), tmp_path / "log"

    def said(text):
        log.write_text("")
        assert shell.run(text, log) == 0
        return log.read_text().partition("\n")[2].strip()

    assert said("NAME=alone printenv NAME") == "alone"
    assert said("export NAME='kept \"here\"'; cd below") == ""
    assert said('echo "$NAME, $(basename "$PWD")"') == 'kept "here", below'
    shell.forget()
    assert said('echo "$NAME, $(basename "$PWD")"') == f", {tmp_path.name}"
    assert shell.run("exit 3", log) == 3


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path):
    shell = commands.Shell(tmp_path, tmp_path, limit=0.5)
    assert shell.run("sleep 60 & echo $! >child; sleep 60", tmp_path / "log") == 124
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")

    def gone() -> bool:
        """Tells whether the child has ended; it may still be a zombie whose exit code has not been read."""
        try:
            return state.read_text().rpartition(")")[2].split()[0] == "Z"
        except FileNotFoundError:
            return True

    deadline = time.monotonic() + 10  # a killed process takes a moment to end
    while not gone() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gone()


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Returns a function that runs the commands of a text, with still videos for clips, and returns their counts."""
    import numpy as np

    from vidmotion import media

    videos = tmp_path / "videos"
    videos.mkdir()
    for k in range(3):
        media.write_mp4(videos / f"{k}.mp4", np.full((30, 32, 32, 3), 80 * k, np.uint8))

    def run(text):
        made = commands.Runs(tmp_path / "runs", videos, limit=500)
        made.page(list(commands.parse(text, "page.md")))
        return made.counts

    return run


def test_what_follows_a_failure_is_not_run(runs, monkeypatch, capsys):
    rules = (commands.Rule("true|false|touch .*|ls .*"), commands.Rule("far", lacks="it is far"))
    monkeypatch.setattr(commands, "RULES", rules)
    text = "```bash\nfalse && touch x\nfar && touch y\nls FOLDER/A.mp4 DIR/B.mp4 A.png D.png B.mp4 y\n```\n"
    assert runs(text) == {"done": 2, "failed": 1, "not run": 2}
    said = capsys.readouterr().out
    assert "touch x\n    not run: the command before it failed\n" in said
    assert "far\n    not run: it is far\n" in said


SAMPLE = """\
```bash
vidmotion weights && vidmotion reenact --help
vidmotion prepare videos --src=FOLDER --out=data/videos --size=64 --seconds=1
vidmotion prepare videos --src=FOLDER --out=data/videos --size=32 --seconds=1
```

```bash
python -m vidmotion.main --config=configs/heads_codec.py:demo --workdir=runs/heads_codec
python -m vidmotion.weights --workdir=runs/heads_codec --name=mine --out=DIR   # made of it
```
"""


@pytest.mark.slow
def test_a_sample_runs(runs, capsys, tmp_path):
    """The second preparation is refused, because the folder holds another dataset; all other commands run."""
    counts = runs(SAMPLE)
    said = capsys.readouterr().out
    assert counts == {"done": 5, "failed": 1, "not run": 0}, said
    assert "--config=configs/heads_codec.py:debug --workdir" in said
    assert "exit code 2" in said and "holds another dataset" in said
    page = tmp_path / "runs" / "page"
    assert (page / "made" / "mine.safetensors").stat().st_size > 0
    assert len(os.listdir(page / "runs" / "heads_codec" / "checkpoints")) >= 1
    log = (tmp_path / "runs" / "logs" / "page-2.log").read_text()
    assert "heads_codec: " in log and "--side_by_side" in log
