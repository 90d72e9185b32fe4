"""Trains every system: builds the run, restores it, steps, logs, saves and evaluates.

A step never waits for the host: batches are placed on the devices ahead of time, metrics are read one step late, and
checkpoints are written in the background. A failing evaluation or a failure to make pictures never stops training: it
is logged, named in the run's record and skipped.
"""

import contextlib
import functools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils

from vidmotion import evaluation, hardware, run_record
from vidmotion.checkpoint import Checkpointer, CheckpointError, read_position
from vidmotion.data.clip_source import Prepared
from vidmotion.data.pipeline import device_prefetch
from vidmotion.data.records import DatasetError
from vidmotion.errors import EXIT_DONE, EXIT_PREEMPTED, EXIT_UNMEASURED, ConfigError
from vidmotion.files import atomic_write
from vidmotion.media import MediaError
from vidmotion.metric_writer import (
    METRICS_FILE,
    DeferredMetrics,
    MetricWriter,
    Mirror,
    Progress,
    read_metrics,
)
from vidmotion.metrics.result import MetricResult
from vidmotion.open_run import claim_workdir
from vidmotion.run import Run, announce
from vidmotion.state import TrainState, name_broken
from vidmotion.system import Describes
from vidmotion.trace import Trace

log = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or a parameter became NaN or infinite; the message names it and the step."""


class PreemptedError(RuntimeError):
    """A run that this one needs was interrupted; its state is saved, and the same command resumes it."""


class Interruption:
    """Turns SIGTERM and Ctrl-C into a flag that all processes see at the same step; a context manager.

    With several processes, jax's own preemption service informs the others. A second Ctrl-C stops at once.
    """

    def __init__(self):
        self.asked = False  # whether this process was asked to stop
        self._raise = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        with contextlib.suppress(ValueError):  # outside the main thread: a notebook or a test
            if jax.process_count() == 1:
                self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._ask)
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # jax catches it and tells the other processes
        if self._raise:
            raise KeyboardInterrupt
        log.warning("asked to stop: saving after this step")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let signals raise KeyboardInterrupt inside this context, for work that may be given up, unlike a step.

        With several processes signals still only set the flag: a process that left the common work would keep the
        others waiting.
        """
        self._raise = jax.process_count() == 1
        try:
            yield
        finally:
            self._raise = False

    def reached(self, step: int) -> bool:
        """Tell whether to save and stop after `step`; the answer is the same on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked


class Meter:
    """Averages metrics and measures speed between two log lines.

    The argument `waited` of its methods is the total number of seconds for which the loop has waited for data so far.
    """

    def __init__(self, run: Run):
        self._run = run
        self.flops: Future[float | None] | None = None  # FLOPs of one step
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0  # whole session, without pauses
        self._sums: dict[str, tuple[float, int]] = {}  # total, and number of steps that have it
        self._count = 0
        self.resume(0.0)

    def resume(self, waited: float) -> None:
        """Start the clock after the first step, an evaluation or a save."""
        self._begin, self._waited, self._first = time.perf_counter(), waited, self._count

    def add(self, metrics: dict[str, float]) -> None:
        """Add the metrics of one step."""
        for name, value in metrics.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1
        self._count += 1

    def pause(self, waited: float) -> dict[str, float]:
        """Return the averages since the last call and the speed of the steps since `resume`, and restart the clock."""
        seconds = time.perf_counter() - self._begin
        timed = self._count - self._first
        averages = {name: total / count for name, (total, count) in self._sums.items()}
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
        """Return the `rates` of `steps` steps in `seconds`, with TFLOP/s and MFU once the FLOPs are counted."""
        flops = self.flops.result() if self.flops and self.flops.done() else None
        return rates(self._run, flops, steps, seconds)


def rates(run: Run, flops: float | None, steps: int, seconds: float) -> dict[str, float]:
    """Compute the speed of `steps` steps in `seconds`; TFLOP/s and MFU are included only if they are known.

    Args:
      run: the run that took the steps, on all devices.
      flops: the FLOPs of one step, from `Run.flops_per_step`; None if not known.
      steps: the number of steps, positive.
      seconds: the time that the steps took, positive.
    """
    found = {
        "speed/steps_per_second": steps / seconds,
        "speed/examples_per_second": steps * run.config.batch_size / seconds,
    }
    if flops:
        found["speed/model_tflops"] = flops * steps / seconds / 1e12
        kind = jax.devices()[0].device_kind
        share = hardware.mfu(flops, seconds / steps, jax.device_count(), kind)
        if share is not None:
            found["speed/mfu"] = share
    return found


def compile_update(
    run: Run, phase: tuple[int, int | None] | None = None
) -> tuple[jax.stages.Compiled, float]:
    """Compile the update of a phase of the training (by default the last); also returns the seconds this took."""
    began = time.perf_counter()
    lowered = run.lower_update(phase=phase)
    announce(lowered, "step")
    update = lowered.compile()
    seconds = time.perf_counter() - began
    log.info("step compiled in %.1f s", seconds)
    return update, seconds


def train(
    config: ml_collections.ConfigDict,
    workdir: str,
    profile: int = 0,
    evals: Sequence[str] | None = None,
) -> int:
    """Train until ``config.steps``, resuming from the workdir's newest checkpoint if there is one.

    Args:
      config: the run's config.
      workdir: the folder of the run.
      profile: the number of steps to trace into ``<workdir>/profile`` (`Trace`).
      evals: the evaluators to run in place of those that the config names (`evaluation.asked`).

    Returns:
      `EXIT_DONE`; `EXIT_UNMEASURED` if training is done but an evaluation or the pictures failed; `EXIT_PREEMPTED`
      after a signal. In each case the state is saved.

    Raises:
      ConfigError, DatasetError, CheckpointError: see their messages.
      NonFiniteError: a loss, a gradient or a parameter became NaN or infinite; the broken state is not saved.
    """
    run = Run(config, workdir)
    loader = run.loader("train")
    # Missing weights must be found now, not after minutes of compilation and in a workdir that is already claimed.
    jax.block_until_ready(run.consts)
    if read_position(workdir) is None:
        run.check_start()
    run.check_batch(loader.source, _head(loader))
    if isinstance(loader.source, Prepared) and loader.source.made_by:
        log.info("data: %d clips, made by %s", len(loader.source), loader.source.made_by)
    names = evaluation.asked(config, evals)
    evaluation.check(run, names)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run.hold())
        claim_workdir(run)
        checkpointer = stack.enter_context(
            Checkpointer(workdir, config.checkpoint.keep, config.checkpoint.keep_period)
        )
        interruption = stack.enter_context(Interruption())
        restored = run.restore(checkpointer)
        if restored is None:
            _check_fresh(run)
            state, start = run.fresh_state(), 0
        else:
            state, position = restored
            start = loader.check(position)
            log.info("resumed from step %d of %s", start, checkpointer.directory)
        files = stack.enter_context(Mirror(run.workdir, (METRICS_FILE,)))
        writer = stack.enter_context(
            MetricWriter(
                files.local,
                resume_step=-1 if restored is None else start,  # -1 drops all earlier records
                is_host0=jax.process_index() == 0,
            )
        )
        _introduce(run, state, writer, start)
        session = Session(
            run, writer, files, checkpointer, loader, state, start, interruption, names
        )
        stack.callback(loader.close)
        with Trace(run.workdir, start, profile) as trace:
            code = session.loop(trace)
        return session.finish(code)


class Session:
    """One uninterrupted stretch of training, from the step `start` to the last step or to a signal."""

    def __init__(
        self,
        run,
        writer,
        files,
        checkpointer,
        loader,
        state: TrainState,
        start: int,
        interruption,
        evals: Sequence[str],
    ):
        self._interruption, self._evals = interruption, evals
        self.run, self.writer, self.checkpointer, self.loader = run, writer, checkpointer, loader
        self.state, self.start, self.step = state, start, start
        self._files = files
        self._deferred = DeferredMetrics()
        self._latest: dict[str, float] = {}
        self._results: list[MetricResult] = []
        self._missed: dict[str, str] = {}  # measurements that failed the last time: name, reason
        self._meter = Meter(run)

    def loop(self, trace: Trace) -> int:
        """Run the steps; returns `EXIT_DONE` or `EXIT_PREEMPTED`."""
        config, total = self.run.config, self.run.config.steps
        if self.step >= total:
            log.info("all %d steps are done", total)
            return EXIT_DONE
        (update, _), end, stop = compile_update(self.run, self.phase), self.phase[1], False
        self._check_state()  # compiles the check now and not when the first checkpoint is due
        with (
            device_prefetch(self.loader.iterate(self.step), self.run.put) as batches,
            Progress(total, self.step) as self._progress,
            ThreadPoolExecutor(1) as counting,
        ):
            while self.step < total:
                if self.step == end:
                    (update, _), end = compile_update(self.run, self.phase), self.phase[1]
                    self._meter.resume(batches.wait_seconds)
                with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                    self.state, metrics = update(self.state, self.run.consts, next(batches))
                self.step += 1
                trace.completed(self.step, self.state)
                for ready in self._deferred.push(self.step, metrics):
                    self._take(*ready)
                first, last = self.step == self.start + 1, self.step == total
                if first:  # counted in a thread, so that training does not wait for it
                    self._meter.flops = counting.submit(self.run.flops_per_step)
                stop = self._interruption.reached(self.step)
                due = {
                    name: every > 0 and self.step % every == 0 and not (last or stop)
                    for name, every in (
                        ("log", config.log_every),
                        ("save", config.checkpoint.every),
                        ("sample", config.sample.every),
                        *((name, config.evals[name].get("every", 0)) for name in self._evals),
                    )
                }
                if first or last or stop or any(due.values()):
                    self._log(batches.wait_seconds, timed=not first)
                    if due["save"]:
                        self._save(wait=False)
                    if due["sample"]:
                        self._sample()
                    if names := [name for name in self._evals if due[name]]:
                        self._evaluate(names)
                    self._meter.resume(batches.wait_seconds)
                if stop:
                    break
        self._save(wait=True)
        if stop:
            log.info("stopped and saved at step %d; the same command resumes the run", self.step)
            return EXIT_PREEMPTED
        return EXIT_DONE

    def finish(self, code: int) -> int:
        """Make the last pictures, evaluate, and write the run's record; returns the exit code of the run."""
        if code == EXIT_DONE:
            # Pictures and evaluation may take long and fail; until they are done, the record lists them as missing.
            self._missed = dict.fromkeys(self._asked(), "the run ended before")
            self._record()
            self._missed = {}
            self._sample()
            self._results = []
            self._evaluate(self._evals)
            if self._interruption.asked:
                log.warning("stopped while evaluating; the same command evaluates again")
                code = EXIT_PREEMPTED
            elif self._missed:
                log.error(
                    "trained and saved, but not measured: %s; the same command tries again",
                    ", ".join(self._missed),
                )
                code = EXIT_UNMEASURED
        self._record()
        return code

    def _asked(self) -> list[str]:
        """Return the names of the measurements that `_sample` and `_evaluate` attempt."""
        return ["pictures"] * bool(self.run.config.sample.rows) + list(self._evals)

    def _record(self) -> None:
        """Write ``record.json`` with what is known by now."""
        config = self.run.config
        meter = self._meter
        speed = meter.speed(meter.steps, meter.seconds) if meter.steps else {}
        content = {
            **run_record.environment(),
            "config": run_record.without_places(config.to_dict()),
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
            "peak_memory": run_record.peak_memory(),
            "last_metrics": self._latest,
            "results": [row.to_dict() for row in self._results],
            "not_measured": self._missed,
        }
        self.writer.flush()
        self._files.copy_out()
        if jax.process_index() == 0:
            path = self.run.workdir / run_record.RECORD
            old = run_record.read(path) if self.step == self.start else None
            if old:  # no step was taken: keep the old measurements, and old results that have no new counterpart
                results = content["results"] + (
                    _others(old, content["results"]) if self._missed else []
                )
                content = {**old, "results": results, "not_measured": self._missed}
            try:
                run_record.write(path, content)
                log.info("run record: %s", path)
            except OSError as error:  # the trained state is safe, so a full disk is no failure
                log.error("the run record could not be written: %s", error)

    # -- parts ------------------------------------------------------------------------------------

    @property
    def phase(self) -> tuple[int, int | None]:
        """The (first, end) of the steps that share a compiled update with the next step."""
        return self.run.stepper.phase(self.step)

    def _take(self, step: int, metrics: dict[str, float]) -> None:
        """Process the metrics of one finished step; gives up if a loss or a gradient is not finite."""
        losses = [name for name in metrics if name.startswith("loss/")]
        for name in losses + [name for name in metrics if name.startswith("grad_norm/")]:
            if not np.isfinite(metrics[name]):
                self._give_up(step, metrics, f"{name} is {metrics[name]}")
        self._latest = metrics
        self._meter.add(metrics)
        if jax.process_index() == 0:
            self._progress.update(step, metrics[f"loss/{self.run.system.players[0].name}"])

    def _give_up(self, step: int, metrics: dict[str, float], what: str) -> None:
        self.writer.scalars(step, metrics)  # they may help to find the cause
        saved = self.checkpointer.steps()
        last = f"the last checkpoint is step {saved[-1]}" if saved else "there is no checkpoint yet"
        raise NonFiniteError(
            f"{what} at step {step}. This step is not saved; {last}. Lower the learning rate, clip "
            "gradients, or compute in float32."
        )

    def _check_state(self) -> None:
        """Give up if a leaf of the state is not finite: an update may overflow though loss and gradient do not.

        This is checked only before a save, because as a part of the step it would make the step several times slower
        to compile.
        """
        if broken := name_broken(self.state):
            self._give_up(self.step, self._latest, f"{broken} became NaN or infinite")

    def _log(self, waited: float, timed: bool) -> None:
        """Write the averages since the last call, and the speed if the steps since then were `timed`."""
        for ready in self._deferred.drain():
            self._take(*ready)
        if not timed:
            self._meter.resume(waited)
        self.writer.scalars(self.step, self._meter.pause(waited))
        self.writer.flush()

    def _save(self, wait: bool) -> None:
        """Save this step. A failure raises only if `wait` is set; otherwise a later save may make up for it."""
        self._check_state()
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

        def draw():
            pictures = evaluation.pictures(self.run, self.run.vars_of(self.state), self.step)
            self.writer.images(self.step, pictures)

        self._attempt("pictures", draw)

    def _evaluate(self, names: Sequence[str]) -> None:
        results = evaluate_vars(self.run, self.run.vars_of(self.state), names, self._attempt)
        new = {(row.metric, row.convention) for row in results}
        kept = [row for row in self._results if (row.metric, row.convention) not in new]
        self._results = [*results, *kept]
        numbers = {f"eval/{row.metric}": row.value for row in results if row.value is not None}
        if numbers:
            self.writer.scalars(self.step, numbers)

    def _attempt(self, what: str, measure: Callable[[], Any]) -> Any:
        """Return `measure()`, or None if it fails or a signal ends or prevents it; errors never stop training."""
        self._missed.pop(what, None)
        try:
            if not self._interruption.asked:
                with self._interruption.at_once():
                    return measure()
            why = "interrupted"
        except (KeyboardInterrupt, PreemptedError):
            self._interruption.asked = True
            why = "interrupted"
            log.warning("asked to stop: %s is abandoned", what)
        except Exception as error:  # no failed measurement may end the training
            why = f"{type(error).__name__}: {error}"
            known = isinstance(
                error, (ConfigError, DatasetError, CheckpointError, MediaError, OSError)
            )
            log.error("%s at step %d failed: %s", what, self.step, why, exc_info=not known)
        self._missed[what] = " ".join(why.split())
        return None


def evaluate_vars(
    run: Run,
    vars,
    names: Sequence[str] | None = None,
    attempt: Callable[[str, Callable], Any] = lambda _, measure: measure(),
) -> list[MetricResult]:
    """Run evaluators on given variables, print the table of results and write it to ``eval.json``.

    A protocol writes its own files as well.

    Args:
      run: the run whose config names and sets up the evaluators.
      vars: the system's variables.
      names: the names of the evaluators; None runs those that the config names (`evaluation.asked`).
      attempt: called with the name and the function of each evaluator; returns what the function returns, or None
        for no results.
    """
    results = []
    with evaluation.keeping():
        for name in evaluation.asked(run.config, names):
            results += attempt(name, functools.partial(_evaluate, name, run, vars)) or []
    if results and jax.process_index() == 0:
        attempt("table of results", lambda: _report(run, results))
    return results


def _evaluate(name: str, run: Run, vars) -> list[MetricResult]:
    """Run one evaluator; a protocol keeps its counts in a folder, which is locked for this job."""
    alone = name in evaluation.PROTOCOLS
    with run.hold(f"eval/{name}") if alone else contextlib.nullcontext():
        return evaluation.evaluate(name, run, vars)


def _report(run: Run, results: list[MetricResult]) -> None:
    print(run_record.table(results), flush=True)
    rows = [row.to_dict() for row in results]
    run_record.write(run.workdir / "eval.json", {**run_record.environment(), "results": rows})


def _others(old: dict[str, Any], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of an `old` record whose metric and convention are not among `results`."""
    new = {(row["metric"], row["convention"]) for row in results}
    return [row for row in old["results"] if (row["metric"], row["convention"]) not in new]


def _check_fresh(run: Run) -> None:
    """Handle a workdir that has no checkpoint but traces of training.

    If only metrics are there, they are renamed to be kept, and training begins from scratch.

    Raises:
      ConfigError: there is a record of trained steps, which is written only beside a checkpoint.
    """
    steps = (run_record.read(run.workdir / run_record.RECORD) or {}).get("steps_done", 0)
    if steps:
        raise ConfigError(
            f"{run.workdir / run_record.RECORD} says that this run was trained to step {steps}, but there is no "
            "checkpoint: put the folder checkpoints back, or move record.json away to start again"
        )
    if jax.process_index() != 0:
        return
    metrics = run.workdir / METRICS_FILE
    if not metrics.exists() or not any(row["step"] for row in read_metrics(metrics)):
        return
    number = sum(1 for file in run.workdir.iterdir() if file.name.startswith("metrics-lost-"))
    kept = run.workdir / f"metrics-lost-{number}.jsonl"
    metrics.rename(kept)
    log.warning(
        "there is no checkpoint, though %s has steps of this run: the run starts again, and those are kept as %s",
        METRICS_FILE,
        kept.name,
    )


def _head(loader) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in loader.batch(0).items()}


def _introduce(run: Run, state: TrainState, writer: MetricWriter, start: int) -> None:
    overview = parameter_overview.get_parameter_overview(run.abstract_params, include_stats=False)
    if jax.process_index() == 0:
        atomic_write(run.workdir / "parameters.txt", overview + "\n")
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    batch = run.config.batch_size
    log.info(
        "%s: %s parameters on mesh %s, batch %d, %d tokens a step",
        run.config.system.name,
        f"{count:,}",
        dict(run.mesh.shape),
        batch,
        run.system.tokens(batch) if isinstance(run.system, Describes) else 0,
    )
    if start == 0:
        writer.text(0, {"config": f"```\n{run.config.to_json(indent=1)}\n```"})
