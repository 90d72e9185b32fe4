"""A system, a config and a command line small enough to train many times in a test.

    python tests/tiny.py --config=tests/tiny.py --workdir=DIR

The system has all that can go wrong in a resumed run: two players of which one starts late, noise, running state, an
average, frozen leaves and accumulation. ``TINY_SIGNAL="SIGKILL 5 PATH"`` sends the process that signal as soon as five
updates are complete and PATH exists. ``TINY_LATE=PATH`` makes the process look at its workdir only when PATH exists.
"""

import dataclasses
import os
import signal
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from configs import _shared
from vidmotion import system
from vidmotion.system import Out, Player, System

PIXELS = 2 * 16 * 16 * 3


@dataclasses.dataclass(frozen=True)
class Tiny(System):
    """Auto-encodes a clip through `width` numbers, with noise; a critic learns the size of the residual.

    Attributes:
      width: the number of values in the code.
      nan_at: the number of completed updates after which the next update has a loss of NaN; -1 never.
      overflow_at: as `nan_at`, but the loss stays finite and the running mean becomes infinite.
    """

    width: int = 8
    nan_at: int = -1
    overflow_at: int = -1

    @property
    def players(self):
        """The model, and a critic that starts after two updates and learns at every second one."""
        return Player("model"), Player("critic", start=2, period=2, shares_forward=True)

    def input_spec(self, batch):
        """Returns the spec of ``video``, uint8 (B, 2, 16, 16, 3)."""
        return {"video": jax.ShapeDtypeStruct((batch, 2, 16, 16, 3), jnp.uint8)}

    def init(self, key, batch):
        """Returns leaves above and below `sharding.MIN_SIZE`; ``frozen`` never learns."""
        down, up = jax.random.split(key)
        scale = PIXELS**-0.5
        return {
            "model": {
                "down": {"kernel": scale * jax.random.normal(down, (PIXELS, self.width))},
                "up": {"kernel": scale * jax.random.normal(up, (self.width, PIXELS))},
                "frozen": {"bias": jnp.full(PIXELS, 0.5)},
            },
            "critic": {"size": jnp.zeros(())},
        }

    def init_mutable(self):
        """Returns the running mean of the code."""
        return {"mean": jnp.zeros(self.width)}

    def loss(self, player, vars, batch, key, step, carry):
        """Returns the mean square error of the reconstruction from the noisy code; the critic regresses it."""
        if player == "critic":
            return (vars.params["critic"]["size"] - carry) ** 2, Out({}, vars.mutable)
        params = vars.params["model"]
        x = batch["video"].astype(jnp.float32).reshape(-1, PIXELS) / 255.0
        code = (x - params["frozen"]["bias"][None]) @ params["down"]["kernel"]
        mean = 0.9 * vars.mutable["mean"] + 0.1 * jnp.mean(code, axis=0)
        mean = jnp.where(step == self.overflow_at, jnp.inf, mean)
        code += 0.1 * jax.random.normal(key, code.shape)
        y = code @ params["up"]["kernel"] + params["frozen"]["bias"][None]
        loss = jnp.mean((x - y) ** 2)
        broken = jnp.where(step == self.nan_at, jnp.nan, 1.0)
        return loss * broken, Out({"code": jnp.mean(jnp.abs(code))}, {"mean": mean}, loss)


def get_config(argument: str = "") -> ConfigDict:
    """Arguments: ``kind=heads|sprites``."""
    kind = _shared.parse(argument, kind=("heads", "sprites")).kind
    config = _shared.trunk()
    config.system = ConfigDict({"name": "tiny", "width": 8, "nan_at": -1, "overflow_at": -1})
    model = {"rate": 1e-2, "weight_decay": 0.01, "clip": 1.0, "decay": ((".*", True),)}
    model["trainable"] = (("frozen/.*", False), (".*", True))
    model["schedule"] = {"kind": "cosine", "warmup": 3, "end": 0.1}
    config.optimizer = ConfigDict({"model": model, "critic": {"rate": 1e-2}})
    config.ema = ConfigDict({"decay": 0.9, "warmup": True})
    config.data.kind = kind
    if kind == "heads":
        config.data.common = ConfigDict({"size": 16, "frames": 2})
        config.data.train = ConfigDict({"clips": 24, "split": "train"})
        config.data.eval = ConfigDict({"clips": 8, "split": "eval"})
    else:
        config.data.common = ConfigDict({"sheets_dir": ""})
        config.data.train = ConfigDict({"split": "train"})
        config.data.eval = ConfigDict({"split": "test"})
    config.batch_size, config.accumulate, config.steps, config.log_every = 16, 2, 8, 2
    config.checkpoint.every = 3
    return config


def register(monkeypatch) -> None:
    """Makes ``config.system.name = "tiny"`` known for one test."""
    monkeypatch.setitem(system.SYSTEMS, "tiny", "tiny:Tiny")


def _signal_at(name: str, step: int, path: str) -> None:
    from vidmotion import train

    push = train.DeferredMetrics.push

    def pushed(self, now, metrics):
        ready = push(self, now, metrics)
        if now == step:
            while not os.path.exists(path):
                time.sleep(0.01)
            os.kill(os.getpid(), getattr(signal, name))
            if jax.process_count() > 1:
                # Once a second jax looks for the signal and then tells the other processes.
                time.sleep(3)
        return ready

    train.DeferredMetrics.push = pushed


def _late(path: str) -> None:
    from vidmotion import open_run

    check = open_run.check_workdir

    def late(run):
        while not os.path.exists(path):
            time.sleep(0.01)
        return check(run)

    open_run.check_workdir = late


if __name__ == "__main__":
    from vidmotion import main

    system.SYSTEMS["tiny"] = "tiny:Tiny"
    if "TINY_SIGNAL" in os.environ:
        _name, _step, _path = os.environ["TINY_SIGNAL"].split()
        _signal_at(_name, int(_step), _path)
    if "TINY_LATE" in os.environ:
        _late(os.environ["TINY_LATE"])
    main.cli()
