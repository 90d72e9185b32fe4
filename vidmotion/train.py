"""The only training loop: build, restore, step, log, save, evaluate.

The step never waits for the host: batches are on the devices ahead of it, metrics are read one step late,
checkpoints are written in the background.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils

from vidmotion import evaluation, hardware, record
from vidmotion.checkpoint import Checkpointer, CheckpointError
from vidmotion.data.pipeline import device_prefetch
from vidmotion.errors import EXIT_DONE, EXIT_PREEMPTED
from vidmotion.run import Run
from vidmotion.state import TrainState
from vidmotion.system import check_batch
from vidmotion.writer import DeferredMetrics, MetricWriter, Progress

log = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
    """A loss or gradient became NaN or infinite; names the step and the metric."""


class Interruption:
    """SIGTERM and Ctrl-C as a flag that all processes see at the same step; a context manager.

    With several processes, jax's own preemption service spreads the word; a second Ctrl-C stops at once.
    """

    def __init__(self):
        self._asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        with contextlib.suppress(ValueError):  # not in the main thread: a notebook or a test
            if jax.process_count() == 1:
                self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask)
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # caught by jax, which tells the other processes
        log.warning("asked to stop: saving after this step")

    def reached(self, step: int) -> bool:
        """Whether to save and stop after `step`; the same answer on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked


class Meter:
    """Averages of metrics and speed between two log lines."""

    def __init__(self, run: Run, flops: float | None):
        self._run, self._flops = run, flops
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0  # of the whole session, pauses left out
        self._sums: dict[str, float] = {}
        self._count = 0
        self.resume()

    def resume(self) -> None:
        """Start the clock again after compilation, an evaluation or a save."""
        self._begin = time.perf_counter()
        self._first = self._count

    def add(self, metrics: dict[str, float]) -> None:
        """Take up one step's numbers."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def pause(self, waited: float) -> dict[str, float]:
        """Averages since the last call, and the speed since `resume`; `waited` seconds were for data."""
        seconds = time.perf_counter() - self._begin
        timed = self._count - self._first
        averages = {name: total / self._count for name, total in self._sums.items()}
        if timed:
            self.steps += timed
            self.seconds += seconds
            self.waited += waited
            averages |= self.speed(timed, seconds)
            averages["speed/data_wait_share"] = waited / seconds
        self._sums, self._count, self._first = {}, 0, 0
        self._begin = time.perf_counter()
        return averages

    def speed(self, steps: int, seconds: float) -> dict[str, float]:
        """Rates of `steps` steps in `seconds`; TFLOP/s and MFU only where they are known."""
        devices = jax.device_count()
        rates = {
            "speed/steps_per_second": steps / seconds,
            "speed/examples_per_second": steps * self._run.config.batch_size / seconds,
        }
        if self._flops:
            rates["speed/model_tflops"] = self._flops * steps / seconds / 1e12
            share = hardware.mfu(
                self._flops, seconds / steps, devices, jax.devices()[0].device_kind
            )
            if share is not None:
                rates["speed/mfu"] = share
        return rates


def train(config: ml_collections.ConfigDict, workdir: str) -> int:
    """Train until ``config.steps``, resuming whatever the workdir holds.

    Returns:
      `EXIT_DONE`, or `EXIT_PREEMPTED` after a signal (the state is saved).

    Raises:
      ConfigError, DatasetError, CheckpointError: see their messages.
      NonFiniteError: a loss or gradient became NaN or infinite; nothing of it is saved.
    """
    run = Run(config, workdir)
    loader = run.loader("train")
    check_batch(run.system, _head(loader), config.batch_size // jax.process_count())
    run.claim_workdir()
    with contextlib.ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        checkpointer = stack.enter_context(
            Checkpointer(workdir, config.checkpoint.keep, config.checkpoint.keep_period)
        )
        restored = run.restore(checkpointer)
        if restored is None:
            state, start = run.fresh_state(), 0
        else:
            state, position = restored
            start = loader.check(position)
            log.info("resumed from step %d of %s", start, checkpointer.directory)
        writer = stack.enter_context(
            MetricWriter(workdir, resume_step=start, is_host0=jax.process_index() == 0)
        )
        _introduce(run, state, writer, start)
        session = Session(run, writer, checkpointer, loader, state, start)
        stack.callback(loader.close)
        code = session.loop(interruption)
        session.finish(code)
    return code


class Session:
    """One uninterrupted stretch of training: from `start` to the end or to a signal."""

    def __init__(self, run, writer, checkpointer, loader, state: TrainState, start: int):
        self.run, self.writer, self.checkpointer, self.loader = run, writer, checkpointer, loader
        self.state, self.start, self.step = state, start, start
        self._deferred = DeferredMetrics()
        self._latest: dict[str, float] = {}
        self._results: list[record.Result] = []
        flops = run.flops_per_step() if start < run.config.steps else None
        self._meter = Meter(run, flops)
        self._saved = start if start in checkpointer.steps() else None

    def loop(self, interruption: Interruption) -> int:
        """Run the steps; returns an exit code."""
        config, total = self.run.config, self.run.config.steps
        if self.step >= total:
            return EXIT_DONE
        began = time.perf_counter()
        update = self.run.lower_update().compile()
        log.info("step compiled in %.1f s", time.perf_counter() - began)
        with (
            device_prefetch(self.loader.iterate(self.step), self.run.put) as batches,
            Progress(total, self.step) as progress,
            self._is_host0(progress),
        ):
            self._meter.resume()
            waited = batches.wait_seconds
            while self.step < total:
                self.state, metrics = update(self.state, self.run.consts, next(batches))
                self.step += 1
                for ready in self._deferred.push(self.step, metrics):
                    self._take(*ready, progress)
                if self.step == self.start + 1:
                    waited = self._log(batches, waited, drain=progress)  # leave warm-up out
                stop = interruption.reached(self.step)
                due = {
                    name: every and self.step % every == 0 and self.step < total
                    for name, every in (
                        ("log", config.log_every),
                        ("save", config.checkpoint.every),
                        ("sample", config.sample.every),
                        ("eval", config.eval.every),
                    )
                }
                if stop or self.step == total or any(due.values()):
                    waited = self._log(batches, waited, drain=progress)
                    if due["save"] and not stop:
                        self._save(wait=False)
                    if due["sample"]:
                        self._sample()
                    if due["eval"]:
                        self._evaluate()
                    self._meter.resume()
                    waited = batches.wait_seconds
                if stop and self.step < total:
                    self._save(wait=True, must=True)
                    return EXIT_PREEMPTED
        self._save(wait=True, must=True)
        return EXIT_DONE

    def finish(self, code: int) -> None:
        """Last pictures and numbers, and the run's record."""
        if code == EXIT_DONE:
            self._sample()
            self._evaluate()
        config = self.run.config
        meter = self._meter
        speed = meter.speed(meter.steps, meter.seconds) if meter.steps else {}
        content = {
            **record.environment(),
            "config": config.to_dict(),
            "seed": config.seed,
            "data_fingerprint": self.loader.fingerprint,
            "steps_done": self.step,
            "steps_planned": config.steps,
            "session_steps": meter.steps,
            "step_seconds": meter.seconds / meter.steps if meter.steps else None,
            "data_wait_share": meter.waited / meter.seconds if meter.steps else None,
            "mfu": speed.get("speed/mfu", "unknown"),
            **{name.removeprefix("speed/"): value for name, value in speed.items()},
            "peak_memory": record.peak_memory(),
            "last_metrics": self._latest,
            "results": [row._asdict() for row in self._results],
        }
        if jax.process_index() == 0:
            record.write(self.run.workdir / "record.json", content)
        log.info("run record: %s", self.run.workdir / "record.json")

    # -- parts ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _is_host0(self, progress: Progress) -> Iterator[None]:
        self._show = progress.update if jax.process_index() == 0 else lambda *_: None
        yield

    def _take(self, step: int, metrics: dict[str, float], progress: Progress) -> None:
        """Look at one finished step's numbers."""
        for name, value in metrics.items():
            if name.startswith(("loss/", "grad_norm/")) and not np.isfinite(value):
                saved = self.checkpointer.steps()
                raise NonFiniteError(
                    f"{name} is {value} at step {step}. Nothing of it is saved; "
                    + (
                        f"the last checkpoint is step {saved[-1]}."
                        if saved
                        else "no checkpoint yet."
                    )
                    + " Lower the learning rate, clip gradients, or compute in float32."
                )
        self._latest = metrics
        self._meter.add(metrics)
        first = self.run.system.players[0].name
        self._show(step, metrics[f"loss/{first}"])

    def _log(self, batches, waited: float, drain: Progress) -> float:
        for ready in self._deferred.drain():
            self._take(*ready, drain)
        averages = self._meter.pause(batches.wait_seconds - waited)
        self.writer.scalars(self.step, averages)
        self.writer.flush()
        return batches.wait_seconds

    def _save(self, wait: bool, must: bool = False) -> None:
        if self._saved == self.step:
            return
        try:
            self.checkpointer.save(self.step, self.state, self.loader.state(self.step), wait)
            self._saved = self.step
        except CheckpointError:
            if must:
                raise
            log.exception("training goes on; the next save may succeed")

    def _sample(self) -> None:
        if not self.run.config.sample.rows:
            return
        pictures = evaluation.pictures(self.run, self.run.vars_of(self.state), self.step)
        self.writer.images(self.step, pictures)

    def _evaluate(self) -> None:
        self._results = evaluate_vars(self.run, self.run.vars_of(self.state))
        numbers = {
            f"eval/{row.metric}": row.value for row in self._results if row.value is not None
        }
        if numbers:
            self.writer.scalars(self.step, numbers)


def evaluate_vars(run: Run, vars) -> list[record.Result]:
    """Run ``config.eval.run`` on given variables; prints the table and writes ``eval.json``."""
    results = []
    for name in run.config.eval.run:
        results += evaluation.evaluate(name, run, vars, companion)
    if results and jax.process_index() == 0:
        print(record.table(results), flush=True)
        rows = [row._asdict() for row in results]
        record.write(run.workdir / "eval.json", {**record.environment(), "results": rows})
    return results


def companion(run: Run) -> Run:
    """A second run that an evaluator needs (a judge): trained first if its workdir holds no checkpoint."""
    with Checkpointer(run.workdir, read_only=True) as checkpointer:
        done = checkpointer.steps()
    if not done or done[-1] < run.config.steps:
        log.info("training %s first", run.workdir)
        train(run.config, run.workdir)
    return run


def _head(loader) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in loader.batch(0).items()}


def _introduce(run: Run, state: TrainState, writer: MetricWriter, start: int) -> None:
    overview = parameter_overview.get_parameter_overview(run.abstract_params, include_stats=False)
    if jax.process_index() == 0:
        (run.workdir / "parameters.txt").write_text(overview + "\n")
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    log.info(
        "%s: %s parameters on mesh %s, batch %d, %d tokens a step",
        run.config.system.name,
        f"{count:,}",
        dict(run.mesh.shape),
        run.config.batch_size,
        run.system.tokens(run.config.batch_size),
    )
    if start == 0:
        writer.text(0, {"config": f"```\n{run.config}\n```"})
