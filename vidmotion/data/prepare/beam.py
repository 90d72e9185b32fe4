"""Cutting videos as an Apache Beam pipeline: on this machine, or where Dataflow, Flink or Spark have workers.

    python -m vidmotion.data.prepare videos --src=DIR --out=DIR --runner=DirectRunner
    python -m vidmotion.data.prepare videos --src=DIR --out=DIR --runner=FlinkRunner \
        --beam="--flink_master=HOST:8081 --environment_type=LOOPBACK"

The pipeline makes the parts of `vidmotion.data.prepare.folders`, one element a video; the dataset is then written from
them by the process that asked for it, and is that of one process, byte for byte. All workers must reach `--src` and
`--out` under the same names: a network file system, or a bucket that is mounted.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vidmotion.data.prepare.folders import FolderJob, FolderRun, SourceFile
from vidmotion.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Cut:
    """A video file -> its part in `out`; called by workers, which have nothing but this."""

    job: FolderJob
    out: Path

    def __call__(self, file: SourceFile) -> None:
        run = FolderRun(self.job, self.out, jobs=1, force=False, progress=_silently)
        run.cut(file)


def cut(job: FolderJob, out: Path, runner: str, options: Sequence[str]) -> None:
    """Make the parts of all files of `job`, and wait until they are made.

    Args:
      job: what to do.
      out: the dataset's folder, whose `parts` is there.
      runner: Beam's name of it: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, PrismRunner.
      options: flags of Beam and of that runner.

    Raises:
      ConfigError: Beam is not installed, or does not take the options.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ConfigError(
            f"--runner={runner} needs Apache Beam ({error}): pip install 'vidmotion[beam]'"
        ) from error
    try:
        # Files differ in length: each is dealt to whoever is free. What is read of the work lies in modules.
        chosen = PipelineOptions([f"--runner={runner}", *options], save_main_session=False)
        pipeline = apache_beam.Pipeline(options=chosen)
    except (SystemExit, ValueError) as error:
        raise ConfigError(f"--runner={runner} --beam={' '.join(options)!r}: {error}") from error
    _ = (
        pipeline
        | "files" >> apache_beam.Create(list(job.files))
        | "deal" >> apache_beam.Reshuffle()
        | "cut" >> apache_beam.Map(Cut(job, out))
    )
    pipeline.run().wait_until_finish()


def _silently(items, total, unit):
    return items
