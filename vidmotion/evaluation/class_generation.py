"""Class-conditional generation: measures whether a judge recognises the requested class in generated clips.

The paper reports gFVD on UCF-101 (spec vidtwin.md, sections 12 and 13), which the protocol ``generation`` measures.
This evaluator lets a trained judge classify an equal number of generated clips of each class. It also reports chance,
and the judge's accuracy on held-out clips that the autoencoder rebuilt, which is the best that generation can reach.
"""

import dataclasses

import jax
import numpy as np

from vidmotion import media
from vidmotion.data import encoded
from vidmotion.errors import ConfigError
from vidmotion.evaluation.evaluator import Evaluator
from vidmotion.evaluation.pictures import write
from vidmotion.evaluation.sprites_judge import NEEDS, judge_clips, trained_judge
from vidmotion.evaluation.transfer import to_uint8
from vidmotion.metrics import judge
from vidmotion.metrics.result import MetricResult, not_computed
from vidmotion.open_run import open_run
from vidmotion.progress import watched
from vidmotion.system import fingerprint
from vidmotion.systems.sprites_judge import LABELS

SHOWN = 4  # clips of each class in the picture sheet


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassGeneration(Evaluator):
    """Measures whether a judge recognises the requested class in generated clips.

    Attributes:
      batch: the number of clips at a time.
      per_class: the number of clips to generate of each class.
      autoencoder: the workdir of the VidTwin run that wrote the latents; "": nothing is decoded, and a row says so.
      judge: the name of a shipped judge, or the workdir of a run of configs/sprites_judge.py; "": there is no judge,
        and a row says so.
    """

    batch: int
    per_class: int
    autoencoder: str = ""
    judge: str = ""

    def check(self, run) -> None:
        """See `Evaluator.check`."""
        run.source("eval")
        if self.autoencoder:
            decoder(run, self.autoencoder, self.batch)
        trained_judge(self.judge, "class_generation.judge")

    def evaluate(self, run, vars) -> list[MetricResult]:
        """Return the judge's accuracy and the entropy of looks on generated and on rebuilt clips.

        Also writes the picture sheets, see `show`.

        Raises:
          ConfigError: `autoencoder` is not the run that wrote the latents; or there is a judge, and the autoencoder
            was trained on other data than Sprites.
        """
        system = run.system
        names = encoded.VidTwinLatentsSource.read_provenance(system.latents)["classes"]
        count = self.per_class * len(names)
        if not self.autoencoder:
            return [
                _unjudged(
                    "config.evals.class_generation.autoencoder, the VidTwin run of the latents",
                    "latents",
                    count,
                )
            ]
        autoencoder, decode = decoder(run, self.autoencoder, self.batch)
        labels = np.tile(np.arange(len(names), dtype=np.int32), self.per_class)
        made = decode(generate(run, vars, labels, self.batch))
        show(run, made, labels, names)
        resolution = f"{made.shape[2]}x{made.shape[3]}"
        if not self.judge:
            return [
                _unjudged(
                    NEEDS.format("config.evals.class_generation.judge"),
                    resolution,
                    count,
                )
            ]
        if autoencoder.config.data.kind != "sprites":
            raise ConfigError(
                f"config.evals.class_generation: the judge {self.judge!r} reads Sprites, but the autoencoder "
                f"{self.autoencoder!r} learnt from {autoencoder.config.data.kind}: leave the judge empty"
            )
        source = run.source("eval")
        held_out = [source[i] for i in range(min(count, len(source)))]
        rebuilt = decode({name: np.stack([e[name] for e in held_out]) for name in encoded.LATENTS})
        truth = np.array([element["label"] for element in held_out])
        judge_run, judge_vars, identity = trained_judge(self.judge, "class_generation.judge")
        on_made, on_rebuilt = (
            _judged(judge_run, judge_vars, videos, of)
            for videos, of in ((made, labels), (rebuilt, truth))
        )
        chance = f"chance {1 / len(names):.3f}"
        guided = f"guidance {system.guidance.scale:g}, {system.sampler.steps} steps"
        spread = [
            np.mean([judge.marginal_entropy(part[name]) for name, _ in LABELS[1:]])
            for part in (on_made, on_rebuilt)
        ]
        entropy = "nats, H(y) of skin, pants, top and hair on average; at most ln 6 = 1.792"
        rows = [
            (
                "class_accuracy/generated",
                judge.accuracy(on_made["action"], labels),
                f"{chance}; {self.per_class} clips of each of {len(names)} classes; {guided}",
                count,
            ),
            (
                "class_accuracy/rebuilt",
                judge.accuracy(on_rebuilt["action"], truth),
                f"{chance}; held-out clips through the autoencoder: what generation can reach",
                len(truth),
            ),
            ("H(looks)/generated", spread[0], entropy, count),
            ("H(looks)/rebuilt", spread[1], entropy, len(truth)),
        ]
        return [
            MetricResult(name, float(value), convention, identity, resolution, n)
            for name, value, convention, n in rows
        ]


def _unjudged(needs: str, resolution: str, count: int) -> MetricResult:
    return not_computed("class_accuracy/generated", "judged", needs, resolution, count)


def generate(run, vars, labels: np.ndarray, batch: int, first: int = 0) -> dict[str, np.ndarray]:
    """Generate the latents (N, ...) of new clips of the classes `labels` (N,).

    Args:
      run: a `vidmotion.run.Run`.
      vars: the system's variables.
      labels: (N,) the class of each clip.
      batch: the number of clips at a time.
      first: the index of the first of these clips among all clips; it seeds the noise, which differs between batches.
    """
    rows = run.rows(batch)
    sample = run.jit_sample()
    key = jax.random.key(run.config.seed)
    parts = []
    for start in watched(range(0, len(labels), rows), "generating"):
        picked = np.minimum(np.arange(start, start + rows), len(labels) - 1)
        placed = run.put_rows({"label": labels[picked]})
        latents = sample(vars, placed, jax.random.fold_in(key, first + start))
        kept = min(rows, len(labels) - start)
        parts.append({name: np.asarray(value)[:kept] for name, value in latents.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def decoder(run, workdir: str, batch: int):
    """Open the VidTwin run that decodes the latents of `run`.

    Args:
      run: the run whose system generates the latents.
      workdir: the workdir of the VidTwin run.
      batch: the number of clips to decode at a time.

    Returns:
      the VidTwin run, and a function that decodes latents (N, ...) to uint8 videos (N, T, H, W, 3).

    Raises:
      ConfigError: the workdir holds another system, or is not the run or checkpoint that wrote the latents.
    """
    system, autoencoder = run.system, open_run(workdir)
    if autoencoder.config.system.name != "vidtwin":
        raise ConfigError(
            f"config.evals.class_generation.autoencoder={workdir!r} holds a "
            f"{autoencoder.config.system.name}, which cannot decode latents of structure and dynamics"
        )
    weights = autoencoder.trained_vars()
    wrote = encoded.VidTwinLatentsSource.read_provenance(system.latents)["weights"]
    if fingerprint(weights.params["model"]) != wrote:
        raise ConfigError(
            f"config.evals.class_generation.autoencoder={workdir!r} is not the run, or not the checkpoint, "
            f"that wrote the latents {system.latents!r}: its weights differ"
        )
    rows = autoencoder.rows(batch)
    render = autoencoder.jit(autoencoder.system.render)

    def decode(latents: dict[str, np.ndarray]) -> np.ndarray:
        total, videos = len(latents["structure"]), []
        for start in range(0, total, rows):
            picked = np.minimum(np.arange(start, start + rows), total - 1)
            inputs = {name: latents[name][picked] for name in encoded.LATENTS}
            video = render(weights, autoencoder.put_rows(inputs))
            videos.append(to_uint8(np.asarray(video)[: total - start]))
        return np.concatenate(videos)

    return autoencoder, decode


def _judged(judge_run, judge_vars, videos: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the judge's probabilities of each label for the videos."""
    nothing = np.zeros(len(LABELS) - 1, np.int32)  # the true looks are not known and not used
    clips = [
        {"video": video, "action": np.int32(label), "attributes": nothing}
        for video, label in zip(videos, labels)
    ]
    return judge_clips(judge_run, judge_vars, clips)[0]


def show(run, videos: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    """Write ``samples/generated.{png,mp4,gif}``: a row of clips for each class, captioned with its name.

    The PNG shows the middle frame.
    """
    columns = min(SHOWN, *np.bincount(labels, minlength=len(names)))
    cells, captions = [], []
    for label, name in enumerate(names):
        cells += list(videos[labels == label][:columns])
        captions += [name] + [""] * (columns - 1)
    sheet = media.grid(cells, cols=columns, scale=2, captions=captions)
    write(run, "generated", sheet)
