r"""Runs the commands in the pages: every ```bash block of README.md, docs/*.md and docs/papers/*.md.

    python docs/commands.py                                      # lists them, and says what would be done about each
    python docs/commands.py --run                                # runs them, one after the other, in a new folder
    python docs/commands.py --run --page=own-folder --videos=DIR # those of a page, on the videos of DIR
    python docs/commands.py --run --match=weights                # those that contain a text

Each page has a folder of its own, in which its commands run in order; files that a page takes for granted (`MADE`) are
made there first. `RULES` says whether a command runs as it is, runs in a shorter form, or does not run, and why. Each
command must match exactly one rule; a command that matches none or several ends this script with exit code 1, and so
does a command that fails. Without --videos, a few heads that this script draws take the place of videos.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vidmotion.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]

# -- the tables ---------------------------------------------------------------------------------

# Names that the pages use for a folder of the reader's own videos; A.mp4 and B.mp4 are two of the videos.
FOLDERS = ("FOLDER", "DIR")
VIDEOS = ("A.mp4", "B.mp4")  # also linked beside the folders
PICTURES = ("A.png", "B.png", "C.png", "D.png")  # each is the first frame of a video
# File or folder -> the commands that make it; a reader has it from other commands of the pages or of docstrings.
MADE = {
    "RUN": ("vidmotion train --config=xnemo:debug --workdir=RUN",),
    "runs/xnemo_4": ("vidmotion train --config=xnemo:debug --workdir=runs/xnemo_4",),
    "GPT_RUN": (
        "vidmotion encode --workdir=RUN --out=data/xnemo_motion --frames=32 --fps=25",
        "vidmotion train --config=xnemo_gpt:debug,task=tokenizer --workdir=TOKENIZER",
        "vidmotion encode --workdir=TOKENIZER --out=data/xnemo_tokens",
        "vidmotion train --config=xnemo_gpt:debug,task=outpaint --workdir=GPT_RUN "
        "--config.evals.token_generation.xnemo=RUN",
    ),
    "FILE": ("cp $(ls GPT_RUN/samples/*.safetensors | head -1) FILE",),
    "data/own": ("vidmotion prepare videos --src=FOLDER --out=data/own --size=64",),
    "data/test": (
        "vidmotion prepare videos --src=FOLDER --out=data/test --size=32 --seconds=2 --test_share=1",
    ),
    "runs/own": (
        "vidmotion train --config=own:demo,system=bcd,size=64 --workdir=runs/own --config.steps=2",
    ),
    "runs/heads_codec": ("vidmotion train --config=heads_codec:debug --workdir=runs/heads_codec",),
}
# File or folder of `MADE` -> what has to be made before it, in the same folder.
OF = {
    "GPT_RUN": ("RUN",),
    "FILE": ("GPT_RUN",),
    "runs/own": ("data/own",),
}

PUBLISHED = "it needs published weights"
HANDED = "it needs a dataset that its owners give only to applicants"
Changes = tuple[tuple[str, str], ...]
# Trains for the two steps of `:debug` instead of a whole training.
DEBUG: Changes = (
    (r":(demo|mini)\b", ":debug"),
    (r"(--config=[^\s:]+)(?=\s|$)", r"\1:debug"),
    (r"(--config=[^\s:]+:)(?!debug)", r"\1debug,"),
)
TWO_STEPS: Changes = ((r"$", " --config.steps=2"),)
DRY: Changes = ((r"$", " --dry_run"),)
# Plans a program that compiles in seconds, with the compiler of the CPU, which is always there.
CHEAP_PLAN: Changes = (*DEBUG, (r"$", " --config.plan.compiler=cpu --config.plan.fit=False"))


@dataclasses.dataclass(frozen=True)
class Rule:
    """What to do with the commands that match a pattern.

    Attributes:
      pattern: the regular expression of the whole command, as `canonical` writes it.
      lacks: the reason not to run the commands; "" if they are run.
      changes: pairs of a regular expression and its replacement, applied one after the other to the page's command.
      drawn: the text to append where the videos are drawn heads, in which no detector finds a face.
      first: the names of `MADE` that the commands need but do not mention.
      module: the Python module without which the commands are not run.
      variable: the environment variable without which the commands are not run; it replaces the text ``DIR``.
    """

    pattern: str
    lacks: str = ""
    changes: Changes = ()
    drawn: str = ""
    first: tuple[str, ...] = ()
    module: str = ""
    variable: str = ""


RULES = (
    Rule(r"pip install .*", lacks="it would change this environment"),
    Rule(r"pytest\b.*", lacks="tests are run separately"),
    # vidmotion train
    Rule(
        r"vidmotion train --config=configs/<name>\.py\[:argument\] .*",
        changes=(
            (r"<name>\.py\[:argument\]", "heads.py:debug"),
            (r"--workdir=DIR", "--workdir=runs/synopsis"),
            (r"\[--mode=MODE\]", "--mode=plan"),
            (r"\[--config\.field=value \.\.\.\]", "--config.batch_size=16"),
        ),
    ),
    Rule(
        r"vidmotion train --config=(configs/)?(?!own\b|sprites)\w+(\.py)?(:\S+)? --workdir=\S+",
        changes=DEBUG,
    ),
    Rule(
        r"vidmotion train --config=(configs/)?sprites\S* --workdir=\S+( --config\.evals\.\S+)?",
        changes=DEBUG,
        variable="VIDMOTION_SHEETS",
    ),
    Rule(
        r"vidmotion train --config=(configs/)?own(\.py)?:(?!.*published)\S+ --workdir=\S+",
        changes=TWO_STEPS,
        first=("data/own",),
    ),
    Rule(
        r"vidmotion train --config=(lrs3|xnemo)_gpt\S* --workdir=\S+ --config\.evals\.\w+\.\w+=\S+",
        changes=DEBUG,
    ),
    Rule(
        r"vidmotion train .*--config\.(init_from|system\.\S*weights)=(?!heads_).*", lacks=PUBLISHED
    ),
    Rule(r"vidmotion train --config=vidtwin_dit --workdir=\S+ --config\.evals\..*", lacks=HANDED),
    # vidmotion eval, sample, plan
    Rule(
        r"vidmotion (eval|sample) --config=\w+:demo\S* --workdir=\S+( --evals=\S+)?( --config\.sample\..*)?",
        changes=(*DEBUG, (r",reading\b", "")),  # the reader knows only heads of 64 pixels
    ),
    Rule(
        r"vidmotion eval --config=configs/xnemo\.py --workdir=RUN --evals=\w+",
        changes=DEBUG,
    ),
    Rule(r"vidmotion eval .*--config\.system\.\S*weights=.*", lacks=PUBLISHED),
    Rule(
        r"vidmotion train \.\.\. --evals=.* --config\.evals\.\w+\.data=.*",
        changes=((r" \.\.\. ", " --config=configs/xnemo.py:debug --workdir=RUN --mode=eval "),),
        first=("RUN",),
    ),
    Rule(
        r"vidmotion train --config=\S+:mini --workdir=\S+ --config\.init_from=heads_\w+",
        changes=TWO_STEPS,
    ),
    Rule(r"vidmotion plan .*--config=\S+ --config\.plan\..*", changes=CHEAP_PLAN),
    # vidmotion prepare
    Rule(r"vidmotion prepare videos --src=\S+ --out=\S+( --(fps|size|seconds)=\S+)*"),
    Rule(
        r"vidmotion prepare videos .*--crop=tube.*",
        changes=((r"--size=256", "--size=32"),),  # the size of the `:debug` run evaluated on it
        drawn="--crop=centre",
        module="skimage",
    ),
    Rule(r"vidmotion prepare videos .*--runner=Flink.*", lacks="it needs a Flink cluster"),
    Rule(r"vidmotion prepare portraits .*", drawn="--crop=centre", module="skimage"),
    Rule(r"vidmotion prepare sprites .*", variable="VIDMOTION_SHEETS"),
    Rule(
        r"vidmotion prepare (lrs3|ucf101|hdtf|vfhq|hallo3|nersemble|mead) .*",
        lacks=HANDED,
    ),
    Rule(r"vidmotion prepare latents .*", lacks=PUBLISHED),
    # commands that use a run
    Rule(
        r"vidmotion reenact --workdir=(RUN|runs/xnemo_4) .*",
        drawn="--box=whole --motion_box=whole",
    ),
    Rule(r"vidmotion reenact --workdir=runs/(?!xnemo_4\b)\S+ .*"),
    Rule(r"vidmotion reenact --workdir=heads_\w+ .*", drawn="--box=whole --motion_box=whole"),
    Rule(r"vidmotion reenact --weights=.*", lacks=PUBLISHED),
    Rule(
        r"vidmotion encode --workdir=runs/\S+ --out=\S+( --frames=\d+)?",
        # Drawn heads have no clips of 512 frames.
        changes=((r"(--workdir=runs/xnemo_4 .*)--frames=512", r"\1--frames=32 --fps=25"),),
    ),
    Rule(r"vidmotion encode .*ucf101.*", lacks=HANDED),
    Rule(r"vidmotion bench --config=.*", changes=(*DEBUG, (r"$", " --steps=2"))),
    Rule(r"vidmotion bench --out=\S+", lacks="it takes hours on a CPU"),
    Rule(
        r"vidmotion weights( --workdir=\S+ --name=\S+ --out=\S+)?",
        changes=((r"--out=DIR", "--out=made"),),
    ),
    Rule(r"vidmotion convert .*", lacks=PUBLISHED),
    Rule(r"vidmotion demo( --out=\S+)?( --pairs=2)?"),
    Rule(r"vidmotion resources"),
    Rule(r"vidmotion \w+ --help"),
    # launchers: one runs on this machine, the others only print their commands
    Rule(r"launch/local\.sh 2 .*:debug .*"),
    Rule(r"launch/gpu\.sh .*", changes=DRY),
    Rule(
        r"sbatch (--nodes=\d+ )?launch/slurm\.sbatch .*",
        changes=((r"sbatch (--nodes=\d+ )?", "bash "), *DRY),
    ),
    Rule(
        r"launch/tpu_vm\.sh NAME .*",
        changes=((r"NAME", "heads"), (r"=Z\b", "=us-central2-b"), (r"BUCKET", "bucket"), *DRY),
    ),
    Rule(r"python launch/sweep\.py .*", changes=DRY),
    Rule(
        r"sbatch --array=1-64 --wrap='.*/64'",
        # Two tasks of the array, one after the other.
        changes=(
            (
                r"sbatch --array=1-64 --wrap='(.*)/64'",
                r"(for SLURM_ARRAY_TASK_ID in 1 2; do \1/2 || exit; done)",
            ),
        ),
    ),
    # TensorFlow Datasets
    Rule(r"tfds build .*", module="tensorflow"),
    Rule(
        r"python -c .*tfds.*",
        # A hundred clips instead of 20,000.
        changes=(
            (
                r"VidmotionHeads\(",
                "VidmotionHeads(config=tfds.HeadsConfig(name='few', train=100), ",
            ),
        ),
        module="tensorflow_datasets",
    ),
)

# -- reading the pages --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
      page: the file name of the page.
      line: the line of the page on which the command begins.
      block: the number of its block within the page; the commands of a block share the variables of a shell.
      text: the command, without comments and with continued lines joined.
      after: whether the command before it on the line must have succeeded.
    """

    page: str
    line: int
    block: int
    text: str
    after: bool = False


def pages() -> list[Path]:
    """Returns all pages whose commands are read."""
    docs = ROOT / "docs"
    return [ROOT / "README.md", *sorted(docs.glob("*.md")), *sorted(docs.glob("papers/*.md"))]


def read(page: Path) -> list[Command]:
    """Returns the commands of a page."""
    return list(parse(page.read_text(encoding="utf-8"), page.name))


def parse(text: str, page: str) -> Iterator[Command]:
    """Yields the commands in the ```bash blocks of a text.

    Raises:
      ValueError: a quote is not closed.
    """
    blocks = re.finditer(r"^[ \t]*```bash[ \t]*\n(.*?)^[ \t]*```", text, re.M | re.S)
    for number, block in enumerate(blocks):
        first = text.count("\n", 0, block.start(1)) + 1
        for line, command, after in split(block[1]):
            yield Command(page, first + line, number, command, after)


def split(block: str) -> Iterator[tuple[int, str, bool]]:
    """Cuts a block into commands as a shell does, at ends of lines and at ``&&`` outside quotes.

    Yields:
      (line of the block, command without comments and with continued lines joined, whether ``&&`` is before it).

    Raises:
      ValueError: a quote is not closed.
    """
    # Quoted texts and escaped characters; escaped ends of lines, which are left out; comments; separators; the rest.
    token = re.compile(
        r"""(?P<kept>'[^']*'|"(?:[^"\\]|\\.)*"|\\[^\n])|(?P<joined>\\\n[ \t]*)"""
        r"""|(?P<comment>(?:(?<=[\s;&|(])|\A)\#[^\n]*)|(?P<end>&&\s*|\n)|(?P<other>[^'"])""",
        re.S,
    )
    command, began, place, after = "", 0, 0, False
    while place < len(block):
        found = token.match(block, place)
        if not found:
            raise ValueError(f"a quote is not closed: {block[place:].splitlines()[0]}")
        if not command.strip():
            began = block.count("\n", 0, place)
        if found["end"]:
            if command.strip():
                yield began, command.strip(), after
                after = found["end"].startswith("&&")
            command = ""
        elif not found["comment"] and not found["joined"]:
            command += found[0]
        place = found.end()
    if command.strip():
        yield began, command.strip(), after


def canonical(text: str) -> str:
    """Returns a command in the form that `RULES` match.

    ``python -m vidmotion.main --mode=plan --config=...`` becomes ``vidmotion plan --config=...``.
    """
    text = re.sub(r"\s+", " ", text)
    for word, (module, _, flags) in COMMANDS.items():
        rest = text.removeprefix(f"python -m {module}")
        if rest == text or rest[:1] not in ("", " "):
            continue
        if not flags or flags[0] in rest.split() or (word == "train" and " --mode=" not in rest):
            return f"vidmotion {word}" + "".join(
                f" {part}" for part in rest.split(" ")[1:] if part not in flags
            )
    return text


def matching(text: str) -> list[Rule]:
    """Returns the rules that a command matches; there should be exactly one."""
    return [rule for rule in RULES if re.fullmatch(rule.pattern, canonical(text))]


# -- what becomes of a command ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is done about a command.

    Attributes:
      run: the command to run; "" if nothing is run.
      why_not: the reason why nothing is run.
      first: the names of `MADE` that have to exist before.
      wrong: whether the command matches no rule, or several.
    """

    run: str = ""
    why_not: str = ""
    first: tuple[str, ...] = ()
    wrong: bool = False


def decide(command: Command, drawn: bool) -> Decision:
    """Applies the rule of a command; `drawn` says that the videos are heads that this script draws."""
    rules = matching(command.text)
    if len(rules) != 1:
        patterns = ", ".join(rule.pattern for rule in rules)
        return Decision(
            why_not=f"it falls under more than one rule: {patterns}"
            if rules
            else "it falls under no rule",
            wrong=True,
        )
    (rule,) = rules
    text = command.text
    if rule.lacks:
        return Decision(why_not=rule.lacks)
    if rule.module and importlib.util.find_spec(rule.module) is None:
        return Decision(why_not=f"it needs {rule.module}, which is not installed")
    if rule.variable:
        if not os.environ.get(rule.variable):
            return Decision(why_not=f"it needs {rule.variable}, which is not set")
        text = text.replace("DIR", f'"${rule.variable}"', 1)
    for pattern, instead in rule.changes:
        text = re.sub(pattern, instead, text, count=1)
    if drawn and rule.drawn:
        text += f" {rule.drawn}"
    return Decision(text, first=tuple(dict.fromkeys((*rule.first, *_named(text)))))


def _named(text: str) -> tuple[str, ...]:
    """Returns the names of `MADE` that a command reads: its values, except for the folders that it writes itself."""
    written = {"out"} | (
        {"workdir"} if re.match(r"vidmotion train|launch/", canonical(text)) else set()
    )
    values = [
        value
        for flag, value in re.findall(r"--([\w.]+)=(\S+)", text)
        if flag not in written and flag != "src"
    ]
    return tuple(name for name in MADE if name in values)


# -- running ------------------------------------------------------------------------------------

# A run of two steps spends nearly all its time on compilation, and unoptimised code compiles faster.
SETTINGS = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)}


def prepare_folder(folder: Path, clips: Path) -> None:
    """Makes a folder in which the commands of a page can be run.

    It has the launchers and configs of a clone, and `FOLDERS`, `VIDEOS` and `PICTURES` made from the videos in `clips`.
    """
    from vidmotion import media

    folder.mkdir(parents=True)
    for name in ("launch", "configs"):
        (folder / name).symlink_to(ROOT / name)
    for name in FOLDERS:
        (folder / name).symlink_to(clips)
    for name in VIDEOS:
        (folder / name).symlink_to(clips / name)
    files = sorted(clips.iterdir())
    for k, name in enumerate(PICTURES):
        frames = media.iter_video(files[k % len(files)])
        media.write_png(folder / name, next(iter(frames)))


def gather_clips(folder: Path, videos: Path | None) -> None:
    """Links to the videos of a folder, the two smallest as `VIDEOS`; without a folder, writes videos of drawn heads."""
    from vidmotion import media
    from vidmotion.data.pipeline import make_source

    folder.mkdir(parents=True)
    if videos is None:
        heads = make_source("heads", clips=4, size=128, frames=110, fps=25.0, seed=0, split="train")
        names = [*VIDEOS, "c.mp4", "d.mp4"]
        for k, name in enumerate(names):
            media.write_mp4(folder / name, heads[k]["video"], fps=25)
        return
    found = [path for path in videos.iterdir() if path.suffix == ".mp4"]
    found.sort(key=lambda path: (path.stat().st_size, path.name))
    if len(found) < 2:
        raise SystemExit(
            f"--videos={videos}: this folder needs at least two mp4 files, for A and B"
        )
    for k, path in enumerate(found):
        (folder / (VIDEOS[k] if k < 2 else path.name)).symlink_to(path.resolve())


class Shell:
    """Runs commands in a folder; commands of one block share variables and folder, as in a shell.

    Args:
      folder: the folder of the page.
      programs: a folder that comes first in PATH.
      limit: the number of seconds after which a command is ended.
    """

    def __init__(self, folder: Path, programs: Path, limit: float):
        self._folder, self._limit = folder, limit
        self._state = folder / ".shell"
        path = os.pathsep.join(
            [str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        self._environment = {**SETTINGS, **os.environ, "PYTHONPATH": str(ROOT), "PATH": path}

    def forget(self) -> None:
        """Begins a new block, without the variables and the folder of the last one."""
        self._state.unlink(missing_ok=True)

    def run(self, text: str, log: Path) -> int:
        """Runs a command and appends its output to `log`; returns its exit code, or 124 if it took too long."""
        state = shlex.quote(str(self._state))
        keep = f"{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} >{state}"
        script = f"[ -e {state} ] && . {state}\n{text}\ncode=$?\n{keep}\nexit $code"
        with log.open("ab") as stream:
            stream.write(f"$ {text}\n".encode())
            stream.flush()
            process = subprocess.Popen(
                ["bash", "-c", script],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                return process.wait(self._limit)
            except subprocess.TimeoutExpired:
                return 124
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def write_programs(folder: Path) -> None:
    """Writes the programs `python` and `vidmotion`, which use this interpreter and this checkout."""
    folder.mkdir(parents=True)
    for name, words in {"python": [], "vidmotion": ["-m", "vidmotion"]}.items():
        command = shlex.join([sys.executable, *words])
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (folder / name).chmod(0o755)


class Runs:
    """Runs the commands of pages, one after the other.

    Args:
      folder: a new folder; logs are in its subfolder ``logs``.
      videos: the folder of videos that the commands get; None for drawn heads.
      limit: the number of seconds that a command may take.

    Attributes:
      counts: the number of commands that were done, failed or were not run.
    """

    def __init__(self, folder: Path, videos: Path | None = None, limit: float = 1800):
        self._folder, self._drawn, self._limit = folder, videos is None, limit
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True)
        write_programs(folder / "programs")
        self._clips = folder / "clips"
        gather_clips(self._clips, videos)
        self.counts = {"done": 0, "failed": 0, "not run": 0}

    def page(self, commands: Sequence[Command]) -> None:
        """Runs commands of one page and prints what became of each."""
        folder = self._folder / Path(commands[0].page).stem
        prepare_folder(folder, self._clips)
        shell = Shell(folder, self._folder / "programs", self._limit)
        block, failed_before = -1, False
        for command in commands:
            if command.block != block:
                shell.forget()
                block = command.block
            failed_before = failed_before and command.after
            decision = decide(command, self._drawn)
            if decision.run and failed_before:
                decision = Decision(why_not="the command before it failed")
            print(f"{command.page}:{command.line}  {command.text}", flush=True)
            if decision.run:
                failed_before = not self._run(command, decision, shell, folder)
            else:
                print(f"    not run: {decision.why_not}", flush=True)
                self.counts["failed" if decision.wrong else "not run"] += 1

    def _run(self, command: Command, decision: Decision, shell: Shell, folder: Path) -> bool:
        """Runs a command, after making what it needs; returns whether that succeeded."""
        if decision.run != command.text:
            print(f"    as: {decision.run}", flush=True)
        log = self._logs / f"{Path(command.page).stem}-{command.line}.log"
        for name in decision.first:
            code = self._make(name, shell, folder, log)
            if code:
                return self._told(command, code, 0.0, log, f"{name} could not be made")
        began = time.perf_counter()
        code = shell.run(decision.run, log)
        return self._told(command, code, time.perf_counter() - began, log)

    def _make(self, name: str, shell: Shell, folder: Path, log: Path) -> int:
        """Makes an entry of `MADE` if it does not exist, and what it needs; returns an exit code."""
        if (folder / name).exists():
            return 0
        if name not in OF and (found := self._of_another_page(name)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(found)
            return 0
        for before in OF.get(name, ()):
            if code := self._make(before, shell, folder, log):
                return code
        for text in MADE[name]:
            print(f"    first: {text}", flush=True)
            if code := shell.run(text, log):
                return code
        return 0

    def _of_another_page(self, name: str) -> Path | None:
        """Returns the path at which another page has made an entry of `MADE`; None if no page has.

        Entries in `OF` need others beside them, and are not shared between pages.
        """
        there = (self._folder / Path(page.name).stem / name for page in pages())
        return next((path for path in there if path.exists()), None)

    def _told(self, command: Command, code: int, seconds: float, log: Path, what: str = "") -> bool:
        print(f"    exit code {code}, {seconds:.1f} s{', ' if what else ''}{what}", flush=True)
        self.counts["failed" if code else "done"] += 1
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
            print(
                "".join(f"    | {line}\n" for line in lines) + f"    | the whole log: {log}",
                flush=True,
            )
        return not code


def show(commands: Sequence[Command], drawn: bool) -> int:
    """Prints what would be done about each command; returns how many match no rule or several."""
    decisions = [decide(command, drawn) for command in commands]
    for command, decision in zip(commands, decisions):
        print(f"{command.page}:{command.line}  {command.text}")
        if decision.run:
            changed = decision.run != command.text
            print(f"    run as: {decision.run}" if changed else "    run")
        else:
            print(f"    not run: {decision.why_not}")
        for name in decision.first:
            print(f"    first, if it does not exist: {name}")
    wrong = sum(decision.wrong for decision in decisions)
    run = sum(bool(decision.run) for decision in decisions)
    print(
        f"{len(commands)} commands: {run} would run and {len(commands) - run} would not; "
        f"{wrong} fall under no single rule"
    )
    return wrong


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns 0 if all is done, 1 if a command failed or has no rule, 2 if there is none."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    flag = parser.add_argument
    flag("--run", action="store_true", help="run the commands instead of listing them")
    flag("--page", action="append", default=[], help="name of a page; may be repeated")
    flag("--match", default="", help="only commands that contain this text")
    flag("--videos", type=Path, help="folder of mp4 files (default: drawn heads)")
    flag("--limit", type=float, default=1800, help="seconds for each command (default 1800)")
    args = parser.parse_args(argv)
    chosen = [page for page in pages() if not args.page or page.stem in args.page]
    by_page = [[c for c in read(page) if args.match in c.text] for page in chosen]
    by_page = [commands for commands in by_page if commands]
    if not by_page:
        print(
            "no command matches; --page takes the name of a page, such as training", file=sys.stderr
        )
        return 2
    if not args.run:
        return int(show([c for commands in by_page for c in commands], args.videos is None) > 0)
    folder = Path(tempfile.mkdtemp(prefix="vidmotion-commands-"))
    print(f"in {folder}", flush=True)
    runs = Runs(folder, args.videos, args.limit)
    for commands in by_page:
        runs.page(commands)
    counts = runs.counts
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    if not counts["failed"]:
        for path in folder.iterdir():
            if path.name != "logs":
                shutil.rmtree(path)
    print(f"logs: {folder / 'logs'}")
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
