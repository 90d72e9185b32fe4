"""The only training loop: build, restore, step, log, save, evaluate.

The step never waits for the host: batches are on the devices ahead of it, metrics are read one step late,
checkpoints are written in the background.
"""

import contextlib
import json
import logging
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
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
from vidmotion.metrics.result import MetricResult
from vidmotion.run import Run
from vidmotion.state import TrainState
from vidmotion.system import check_batch
from vidmotion.writer import METRICS_FILE, DeferredMetrics, MetricWriter, Mirror, Progress

log = logging.getLogger(__name__)

# A line of a lowered program takes XLA so long on two CPU cores, whatever the size of the system: a rough forecast.
COMPILE_SECONDS = 0.001


class NonFiniteError(FloatingPointError):
    """A loss or gradient became NaN or infinite; names the step and the metric."""


class PreemptedError(RuntimeError):
    """A run that this one needs was interrupted; its state is saved, the same command resumes it."""


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
    """Averages of metrics and speed between two log lines.

    `waited` is each time the total number of seconds that the loop has waited for data so far.
    """

    def __init__(self, run: Run):
        self._run = run
        self.flops: Future[float | None] | None = None  # of one step, once they are counted
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0  # of the whole session, pauses left out
        self._sums: dict[str, float] = {}
        self._count = 0
        self.resume(0.0)

    def resume(self, waited: float) -> None:
        """Start the clock after the first step, an evaluation or a save."""
        self._begin, self._waited, self._first = time.perf_counter(), waited, self._count

    def add(self, metrics: dict[str, float]) -> None:
        """Take up one step's numbers."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def pause(self, waited: float) -> dict[str, float]:
        """Averages since the last call, and the speed of the steps since `resume`."""
        seconds = time.perf_counter() - self._begin
        timed = self._count - self._first
        averages = {name: total / self._count for name, total in self._sums.items()}
        if timed:
            self.steps += timed
            self.seconds += seconds
            self.waited += waited - self._waited
            averages |= self.speed(timed, seconds)
            averages["speed/data_wait_share"] = (waited - self._waited) / seconds
        self._sums, self._count = {}, 0
        self.resume(waited)
        return averages

    def speed(self, steps: int, seconds: float) -> dict[str, float]:
        """Rates of `steps` steps in `seconds`; TFLOP/s and MFU only where they are known."""
        devices = jax.device_count()
        rates = {
            "speed/steps_per_second": steps / seconds,
            "speed/examples_per_second": steps * self._run.config.batch_size / seconds,
        }
        flops = self.flops.result() if self.flops and self.flops.done() else None
        if flops:
            rates["speed/model_tflops"] = flops * steps / seconds / 1e12
            kind = jax.devices()[0].device_kind
            share = hardware.mfu(flops, seconds / steps, devices, kind)
            if share is not None:
                rates["speed/mfu"] = share
        return rates


def train(config: ml_collections.ConfigDict, workdir: str) -> int:
    """Train until ``config.steps``, resuming whatever the workdir holds.

    Returns:
      `EXIT_DONE`, or `EXIT_PREEMPTED` after a signal (the state is saved).

    Raises:
      ConfigError, DatasetError, CheckpointError, PreemptedError: see their messages.
      NonFiniteError: a loss or gradient became NaN or infinite; nothing of it is saved.
    """
    run = Run(config, workdir)
    loader = run.loader("train")
    # Weights that are missing are refused now, not after minutes of compilation and with a workdir begun.
    jax.block_until_ready(run.consts)
    check_batch(run.system, _head(loader), config.batch_size // jax.process_count())
    run.claim_workdir()
    with contextlib.ExitStack() as stack:
        checkpointer = stack.enter_context(
            Checkpointer(workdir, config.checkpoint.keep, config.checkpoint.keep_period)
        )
        with Interruption() as interruption:
            restored = run.restore(checkpointer)
            if restored is None:
                state, start = run.fresh_state(), 0
            else:
                state, position = restored
                start = loader.check(position)
                log.info("resumed from step %d of %s", start, checkpointer.directory)
            files = stack.enter_context(Mirror(run.workdir, (METRICS_FILE,)))
            writer = stack.enter_context(
                MetricWriter(
                    files.local,
                    resume_step=-1 if restored is None else start,  # -1: nothing counts so far
                    is_host0=jax.process_index() == 0,
                )
            )
            _introduce(run, state, writer, start)
            session = Session(run, writer, files, checkpointer, loader, state, start)
            stack.callback(loader.close)
            code = session.loop(interruption)
        session.finish(code)
    return code


class Session:
    """One uninterrupted stretch of training: from `start` to the end or to a signal."""

    def __init__(self, run, writer, files, checkpointer, loader, state: TrainState, start: int):
        self.run, self.writer, self.checkpointer, self.loader = run, writer, checkpointer, loader
        self.state, self.start, self.step = state, start, start
        self._files = files
        self._deferred = DeferredMetrics()
        self._latest: dict[str, float] = {}
        self._results: list[MetricResult] = []
        self._meter = Meter(run)

    def loop(self, interruption: Interruption) -> int:
        """Run the steps; returns an exit code."""
        config, total = self.run.config, self.run.config.steps
        if self.step >= total:
            log.info("all %d steps are done", total)
            return EXIT_DONE
        update, end = self._compile(), self.phase[1]
        with (
            device_prefetch(self.loader.iterate(self.step), self.run.put) as batches,
            Progress(total, self.step) as self._progress,
            ThreadPoolExecutor(1) as counting,
        ):
            while self.step < total:
                if self.step == end:
                    update, end = self._compile(), self.phase[1]
                    self._meter.resume(batches.wait_seconds)
                self.state, metrics = update(self.state, self.run.consts, next(batches))
                self.step += 1
                for ready in self._deferred.push(self.step, metrics):
                    self._take(*ready)
                first, last = self.step == self.start + 1, self.step == total
                if first:  # counted beside the training, which does not wait for it
                    self._meter.flops = counting.submit(self.run.flops_per_step)
                stop = interruption.reached(self.step)
                due = {
                    name: bool(every) and self.step % every == 0 and not (last or stop)
                    for name, every in (
                        ("log", config.log_every),
                        ("save", config.checkpoint.every),
                        ("sample", config.sample.every),
                        ("eval", config.eval.every),
                    )
                }
                if first or last or stop or any(due.values()):
                    self._log(batches.wait_seconds, timed=not first)
                    if due["save"]:
                        self._save(wait=False)
                    if due["sample"]:
                        self._sample()
                    if due["eval"]:
                        self._evaluate()
                    self._meter.resume(batches.wait_seconds)
                if stop:
                    break
        self._save(wait=True)
        if self.step < total:
            log.info("stopped at step %d, saved; the same command resumes", self.step)
            return EXIT_PREEMPTED
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
            "config": record.without_places(config.to_dict()),
            "seed": config.seed,
            "data_fingerprint": self.loader.fingerprint,
            "parameters": {
                player: sum(leaf.size for leaf in jax.tree.leaves(tree))
                for player, tree in self.run.abstract_params.items()
            },
            "steps_done": self.step,
            "steps_planned": config.steps,
            "session_steps": meter.steps,
            "step_seconds": meter.seconds / meter.steps if meter.steps else None,
            "data_wait_share": meter.waited / meter.seconds if meter.steps else None,
            "mfu": speed.get("speed/mfu", "unknown"),
            **{name.removeprefix("speed/"): value for name, value in speed.items()},
            "peak_memory": record.peak_memory(),
            "last_metrics": self._latest,
            "results": [row.to_dict() for row in self._results],
        }
        self.writer.flush()
        self._files.copy_out()
        if jax.process_index() == 0:
            path = self.run.workdir / "record.json"
            if not meter.steps and path.exists():  # nothing trained: keep what was measured then
                content = {**json.loads(path.read_text()), "results": content["results"]}
            try:
                record.write(path, content)
                log.info("run record: %s", path)
            except OSError as error:  # the trained state is safe: a full disk here is no failure
                log.error("the run record could not be written: %s", error)

    # -- parts ------------------------------------------------------------------------------------

    @property
    def phase(self) -> tuple[int, int | None]:
        """The steps that are computed by the same compiled update as the next one."""
        return self.run.stepper.phase(self.step)

    def _compile(self) -> jax.stages.Compiled:
        """The update of this phase of the training, ahead of time."""
        began = time.perf_counter()
        lowered = self.run.lower_update(phase=self.phase)
        operations = lowered.as_text().count("\n")
        log.info("compiling the step, about %d s", max(1, round(operations * COMPILE_SECONDS)))
        update = lowered.compile()
        log.info("step compiled in %.1f s", time.perf_counter() - began)
        return update

    def _take(self, step: int, metrics: dict[str, float]) -> None:
        """Look at one finished step's numbers."""
        losses = [name for name in metrics if name.startswith("loss/")]
        for name in losses + [name for name in metrics if name.startswith("grad_norm/")]:
            value = metrics[name]
            if not np.isfinite(value):
                self.writer.scalars(step, metrics)  # for whoever looks for the cause
                saved = self.checkpointer.steps()
                last = f"the last checkpoint is step {saved[-1]}" if saved else "no checkpoint yet"
                raise NonFiniteError(
                    f"{name} is {value} at step {step}. Nothing of it is saved; {last}. Lower the "
                    "learning rate, clip gradients, or compute in float32."
                )
        self._latest = metrics
        self._meter.add(metrics)
        if jax.process_index() == 0:
            self._progress.update(step, metrics[f"loss/{self.run.system.players[0].name}"])

    def _log(self, waited: float, timed: bool) -> None:
        """Write down the averages since the last time; the speed too, if these steps were `timed`."""
        for ready in self._deferred.drain():
            self._take(*ready)
        if not timed:
            self._meter.resume(waited)
        self.writer.scalars(self.step, self._meter.pause(waited))
        self.writer.flush()

    def _save(self, wait: bool) -> None:
        """Save this step. One that is waited for must succeed; any other may be made up for later."""
        try:
            position = self.run.position(self.loader, self.step)
            self.checkpointer.save(self.step, self.state, position, wait)
        except CheckpointError as error:
            if wait:
                raise
            log.error("%s Training goes on; the next save may succeed.", error)
        self._files.copy_out()

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


def evaluate_vars(run: Run, vars) -> list[MetricResult]:
    """Run ``config.eval.protocol``, or else ``config.eval.run``, on given variables; prints the table.

    Of the latter the rows are also written to ``eval.json``; a protocol writes its own files.
    """
    results, protocol = [], run.config.eval.get("protocol", "")
    with evaluation.keeping():
        for name in (protocol,) if protocol else run.config.eval.run:
            results += evaluation.evaluate(name, run, vars, companion)
    if results and jax.process_index() == 0:
        print(record.table(results), flush=True)
    if results and not protocol and jax.process_index() == 0:
        rows = [row.to_dict() for row in results]
        record.write(run.workdir / "eval.json", {**record.environment(), "results": rows})
    return results


def companion(run: Run) -> Run:
    """A second run that an evaluator needs (a judge): trained first if its workdir holds no checkpoint."""
    with Checkpointer(run.workdir, read_only=True) as checkpointer:
        done = checkpointer.steps()
    if not done or done[-1] < run.config.steps:
        log.info("training %s first", run.workdir)
        if train(run.config, run.workdir) != EXIT_DONE:
            raise PreemptedError(f"training of {run.workdir} was interrupted; its state is saved")
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
        writer.text(0, {"config": f"```\n{run.config.to_json(indent=1)}\n```"})
