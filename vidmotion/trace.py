"""Traces some training steps, for TensorBoard's profile page and for ui.perfetto.dev."""

import logging
from typing import Any

import jax
from etils import epath

log = logging.getLogger(__name__)

WARM = 2  # steps of a session before the trace begins, because the first one also fills caches


class Trace:
    """Writes one trace below ``<workdir>/profile``.

    It is a context manager around the training loop, which calls `completed` after each step.

    Args:
      workdir: the folder of the run, on a local disk.
      start: the number of steps completed before the session.
      steps: the number of steps to trace; with 0 nothing is written.
    """

    def __init__(self, workdir: epath.Path, start: int, steps: int):
        self._folder, self._first, self._steps = workdir / "profile", start + WARM, steps
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def completed(self, step: int, state: Any) -> None:
        """Begin or end the trace, if it is time, after `step` completed updates; `state` is the newest state."""
        if self._steps and step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True
        elif self._running and step == self._first + self._steps:
            jax.block_until_ready(state)  # the traced steps may still be running
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log.info("trace: %s", self._folder)
