"""Runs commands of the project in processes of their own, which start quickly and can be killed."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import tiny

# The server imports once, then forks a child for each command line: a start costs seconds, a fork nothing.
CODE = """
    import gc, json, os, signal, sys, time
    import configs._shared, tiny
    import vidmotion.data.heads, vidmotion.evaluation.pictures, vidmotion.plan, vidmotion.train
    from vidmotion import main, system
    from vidmotion.data import prepare
    system.SYSTEMS["tiny"] = "tiny:Tiny"
    gc.freeze()  # what a child does not touch, it does not copy
    print("ready", flush=True)
    for line in sys.stdin:
        log, name, words, kill_after = json.loads(line)
        child = os.fork()
        if not child:
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            if name == "prepare":
                os._exit(prepare.main(words))
            sys.argv = ["vidmotion", *words]
            main.cli()
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)  # not waited for yet: its number is its own, even if it has ended
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Runs commands one after the other in forked processes; use as a context manager.

    Attributes:
      log: the file with the output of the last command.
    """

    def __init__(self, folder: Path, cache: str = ""):
        """Starts the server.

        Args:
          folder: the folder for the log.
          cache: the folder for compiled programs; that of the tests if empty.
        """
        tests = Path(tiny.__file__).parent
        self.log = folder / "log"
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CODE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
                "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
                **({"JAX_COMPILATION_CACHE_DIR": cache} if cache else {}),
            },
        )
        assert self._process.stdout.readline() == "ready\n"

    def run(self, name: str, words: list[str], kill_after: float | None = None) -> int:
        """Runs a command and returns its exit code, or -9 if it was killed.

        Args:
          name: ``train``, for the command line of `vidmotion.main`, or ``prepare``.
          words: the arguments of the command.
          kill_after: the seconds from its start after which the command is killed; None never kills it.
        """
        self._process.stdin.write(json.dumps([str(self.log), name, words, kill_after]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
