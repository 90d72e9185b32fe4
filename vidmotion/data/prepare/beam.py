"""Cuts videos with an Apache Beam pipeline, on this machine or on workers of Dataflow, Flink or Spark.

    python -m vidmotion.data.prepare videos --src=DIR --out=DIR --runner=DirectRunner
    python -m vidmotion.data.prepare videos --src=DIR --out=DIR --runner=FlinkRunner \
        --beam="--flink_master=HOST:8081 --environment_type=LOOPBACK"

The pipeline makes the parts of `vidmotion.data.prepare.folders`; each element is one video. The process that started
the pipeline then writes the dataset from the parts; it is the same, byte for byte, as one process alone would write.
All workers must reach `--src` and `--out` under the same names, through a network file system or a mounted bucket.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vidmotion.data.prepare.folders import FolderJob, FolderRun, SourceFile
from vidmotion.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Cut:
    """Makes the part of a video file in `out`. Workers receive nothing but this object."""

    job: FolderJob
    out: Path

    def __call__(self, file: SourceFile) -> None:
        run = FolderRun(self.job, self.out, jobs=1, force=False, progress=_silently)
        run.cut(file)


def cut(job: FolderJob, out: Path, runner: str, options: Sequence[str]) -> None:
    """Makes the parts of all files of `job`, and waits until they are done.

    Args:
      job: the files to cut, and how.
      out: the dataset's folder; its subfolder `parts` must exist.
      runner: Beam's name for the runner: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, PrismRunner.
      options: flags for Beam and for the runner.

    Raises:
      ConfigError: Beam is not installed, or rejects the options.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ConfigError(
            f"--runner={runner} needs Apache Beam ({error}): pip install 'vidmotion[beam]'"
        ) from error
    try:
        # The main session need not be saved: everything that workers unpickle is defined in modules.
        chosen = PipelineOptions([f"--runner={runner}", *options], save_main_session=False)
        pipeline = apache_beam.Pipeline(options=chosen)
    except (SystemExit, ValueError) as error:
        raise ConfigError(f"--runner={runner} --beam={' '.join(options)!r}: {error}") from error
    _ = (
        pipeline
        | "files" >> apache_beam.Create(list(job.files))
        | "deal" >> apache_beam.Reshuffle()  # files differ in length, so each goes to a free worker
        | "cut" >> apache_beam.Map(Cut(job, out))
    )
    pipeline.run().wait_until_finish()


def _silently(items, total, unit):
    return items
