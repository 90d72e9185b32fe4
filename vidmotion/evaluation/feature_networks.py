"""Loads the feature networks of metrics from the folders that ``python -m vidmotion.convert`` writes.

    inception = load("fid_inception", folder)
    inception(frames)        # numpy in, numpy out, any number of rows

A network runs only on the devices of its own process, because every process measures its own clips.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vidmotion import sharding
from vidmotion.convert import folder
from vidmotion.metrics import resize
from vidmotion.models.features import emonet, i3d, inception, iresnet, lpips
from vidmotion.system import fingerprint

ROWS = {"i3d": 1}  # rows per device at a time; a row of I3D is a whole clip
PICTURES = 16  # rows per device at a time of all other networks


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
    """A feature network that takes any number of rows; it runs on batches of a fixed size, so `jit` compiles once.

    Attributes:
      weights: a text that identifies the parameters, or whatever stands in for them.
      apply: the function (variables, arrays of equal length) -> array of as many rows; runs under `jit`.
      variables: the variables that `apply` reads.
      rows: the number of rows at a time on each device of this process.
      dim: the length of a row of features; None if a row is a single number.
      least: the least shorter side of a picture in pixels, or the least number of frames of a clip.
    """

    weights: str
    apply: Callable[..., jax.Array]
    variables: Any
    rows: int = PICTURES
    dim: int | None = None
    least: int = 1

    @property
    def batch(self) -> int:
        """The number of rows at a time on all devices of this process together."""
        return self.rows * jax.local_device_count()

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """Returns the features of all rows of `inputs`, arrays of equal length; copies pad the last batch."""
        parts, total = [], len(inputs[0])
        for start in range(0, total, self.batch):
            picked = np.minimum(np.arange(start, start + self.batch), total - 1)
            placed = jax.device_put([x[picked] for x in inputs], self._where)
            parts.append(np.asarray(self._compiled(self._placed, *placed))[: total - start])
        return np.concatenate(parts)

    @functools.cached_property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(jax.local_devices()), ("rows",))

    @property
    def _where(self) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec("rows"))

    @functools.cached_property
    def _placed(self) -> Any:
        return jax.device_put(self.variables, NamedSharding(self._mesh, PartitionSpec()))

    @functools.cached_property
    def _compiled(self) -> Callable[..., jax.Array]:
        return jax.jit(self.apply, compiler_options=sharding.compiler_options(self._mesh))


def _inception(arguments, variables, convention):
    net = inception.InceptionV3(**arguments)

    def apply(variables, images):
        return net.apply(variables, resize.for_inception(images, convention))["2048"]

    return FeatureNetwork("", apply, variables, dim=2048)


def _i3d(arguments, variables, convention):
    eps = resize.CLIP_CONVENTIONS[convention].bn_eps
    net = i3d.I3D(**arguments, bn_eps=eps)

    def apply(variables, clips):
        return net.apply(variables, resize.for_i3d(clips, convention))["logits"]

    return FeatureNetwork("", apply, variables, dim=400, least=i3d.LEAST_FRAMES)


def _arcface(arguments, variables, convention):
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
    net = iresnet.IResNet(**arguments)
    return FeatureNetwork("", net.apply, variables, dim=net.embedding)


def _emonet(arguments, variables, convention):
    net = emonet.EmoNet(**arguments)

    def apply(variables, faces):
        made = net.apply(variables, faces)
        return jnp.stack([made["valence"], made["arousal"]], axis=1)

    return FeatureNetwork("", apply, variables, dim=2)


def _lpips(arguments, variables, convention):
    net = lpips.LPIPS(**arguments)

    def apply(variables, first, second):
        return net.apply({"params": variables}, 2 * first - 1, 2 * second - 1)

    return FeatureNetwork("", apply, variables, least=31 if net.trunk == "alex" else 16)


# The keys are names of `vidmotion.convert`, and also the fields of a protocol's ``weights``.
NETWORKS: dict[str, Callable] = {
    "fid_inception": _inception,
    "i3d": _i3d,
    "arcface": _arcface,
    "emonet": _emonet,
    "lpips_alex": _lpips,
    "lpips_vgg": _lpips,
}


def load(name: str, path: str, convention: str = "", field: str = "weights") -> FeatureNetwork:
    """Loads a network from a folder.

    Args:
      name: a key of `NETWORKS`.
      path: the folder that ``python -m vidmotion.convert`` wrote.
      convention: how pictures are resized before the network reads them; see `metrics.resize`.
      field: the config section that `path` was read from, for error messages.

    Raises:
      ConfigError: there is no such folder, or it holds another network.
    """
    arguments, variables = folder.load_wanted(f"{field}.{name}={path!r}", path, name)
    network = NETWORKS[name](arguments, variables, convention)
    return dataclasses.replace(
        network, weights=fingerprint(variables)[:12], rows=ROWS.get(name, PICTURES)
    )
