"""Loads the trained networks that read samples for evaluators: the judge of Sprites and the reader of Heads."""

from typing import NamedTuple

from vidmotion import weights
from vidmotion.checkpoint import Checkpointer
from vidmotion.errors import ConfigError
from vidmotion.open_run import open_run
from vidmotion.run import Run
from vidmotion.system import System, Vars, fingerprint


class Trained(NamedTuple):
    """A trained network.

    Attributes:
      run: the run that trained it.
      vars: its variables.
      identity: the start of their fingerprint, which names the network in result rows.
    """

    run: Run
    vars: Vars
    identity: str


def trained(where: str, field: str, system: type[System], config: str) -> Trained | None:
    """Load a finished run, or a shipped network; None if `where` is empty.

    Args:
      where: the workdir of the run, or the name of a shipped network.
      field: the config field that `where` was read from, for messages.
      system: the class of its system.
      config: the config file that trains such a system, for messages.

    Raises:
      ConfigError: there is no such run, it is of another system, or its training is not finished.
      CheckpointError: the workdir holds no checkpoint.
    """
    if not where:
        return None
    run, named = open_run(where), f"{field}={where!r}"
    if not isinstance(run.system, system):
        raise ConfigError(
            f"{named} holds a run of {run.config.system.name!r}; expected a run of {config}"
        )
    if where not in weights.names():
        with Checkpointer(where, read_only=True) as checkpointer:
            done = max(checkpointer.steps(), default=0)
        if done < run.config.steps:
            raise ConfigError(
                f"{named} has been trained for {done} of {run.config.steps} steps: finish its training first"
            )
    vars = run.trained_vars()
    return Trained(run, vars, fingerprint(vars.params)[:12])
