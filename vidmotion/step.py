"""Computes one training update as a pure function: players in order, accumulation, clipping, optimizer, EMA.

The whole update is one jitted function of ``(state, consts, batch)``. Random keys are functions of
(seed, step, player, microbatch), so a run resumed at step n continues as if it had never stopped.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vidmotion import paths
from vidmotion.errors import ConfigError
from vidmotion.optim import Optimizer
from vidmotion.state import TrainState
from vidmotion.system import Out, Player, System, Vars, begun, when, within

PyTree = Any
SHORTEST_PHASE = 50  # steps; a shorter phase is not worth compiling a program for


@dataclasses.dataclass(frozen=True)
class Ema:
    """``config.ema``: the exponential moving average of parameters.

    After each update, average <- d * average + (1 - d) * params.

    Attributes:
      decay: the asymptotic d; 0 switches averaging off.
      warmup: whether to use d = min(decay, (1 + n) / (10 + n)) at update n, so that short runs are averaged too.
    """

    decay: float = 0.0
    warmup: bool = True

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ConfigError(f"decay={self.decay!r} must be at least 0 and less than 1")

    def at(self, step: jax.Array) -> jax.Array:
        """Return d, () float32, for the update that follows `step` completed updates."""
        decay = jnp.float32(self.decay)
        if not self.warmup:
            return decay
        count = step.astype(jnp.float32)
        return jnp.minimum(decay, (1.0 + count) / (10.0 + count))


@dataclasses.dataclass(frozen=True)
class Stepper:
    """Binds a system to its optimizers; builds states and the update function.

    Attributes:
      system: the system to train.
      optimizers: ``{player name: Optimizer}``, exactly one per player of the system.
      steps: the planned number of updates; a player's schedule ends with the last update in which it takes part.
      seed: the seed of all randomness.
      accumulate: the number of microbatches per update.
      ema: the averaging of the first player's trainable leaves.

    Raises:
      ConfigError: the optimizers' names are not the system's players, or `accumulate` is below 1.
    """

    system: System
    optimizers: Mapping[str, Optimizer]
    steps: int
    seed: int = 0
    accumulate: int = 1
    ema: Ema = Ema()

    def __post_init__(self):
        names = [player.name for player in self.system.players]
        if sorted(names) != sorted(self.optimizers):
            raise ConfigError(
                f"config.optimizer has sections {sorted(self.optimizers)}, but the system's players "
                f"are {sorted(names)}"
            )
        if self.accumulate < 1:
            raise ConfigError(
                f"config.accumulate={self.accumulate}: at least one microbatch is needed"
            )

    # -- state --------------------------------------------------------------------------------

    def init_params(self, batch: PyTree) -> PyTree:
        """Initialise ``{player: tree}``; jit-able, so that each leaf can be made directly on its devices."""
        return self.system.init(jax.random.key(self.seed), batch)

    def init_state(self, params: PyTree) -> TrainState:
        """Make the state at step 0 from given (possibly loaded) parameters; jit-able."""
        opt, average = {}, {}
        for player in self.system.players:
            trainable, _ = self._split(player.name, params)
            opt[player.name] = self._transform(player.name, trainable).init(trainable)
        if self.ema.decay:
            first = self.system.players[0].name
            average = {first: self._split(first, params)[0]}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            mutable=self.system.init_mutable(),
            opt=opt,
            ema=average,
        )

    def opt_like(
        self, player: str, opt: PyTree, params: PyTree, like: PyTree, other: Any
    ) -> PyTree:
        """Return a tree with the structure of a player's optimizer state `opt`, filled from `like` and `other`.

        A slot that mirrors a parameter takes that parameter's value in `like` (a tree over ALL of the player's
        leaves, for example of shardings); every other slot takes `other`.
        """
        mask = self.optimizers[player].trainable_mask(params[player])
        values = paths.flatten(paths.select(like, mask))

        def value(path, _):
            names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
            # The optimizer's own names may come before those of the parameter.
            tails = ("/".join(names[i:]) for i in range(len(names)))
            return next((values[tail] for tail in tails if tail in values), other)

        return jax.tree_util.tree_map_with_path(value, opt)

    def _split(self, player: str, params: PyTree) -> tuple[PyTree, PyTree]:
        """Split a player's parameters into (trainable, frozen) leaves."""
        mask = self.optimizers[player].trainable_mask(params[player])
        inverse = jax.tree.map(lambda flag: not flag, mask)
        return paths.select(params[player], mask), paths.select(params[player], inverse)

    def _transform(self, player: str, trainable: PyTree) -> optax.GradientTransformation:
        (seat,) = (seat for seat in self.system.players if seat.name == player)
        before = seat.start // seat.period if seat.whole_schedule else 0
        updates = -(-max(self.steps - seat.start, 1) // seat.period)
        return self.optimizers[player].transform(trainable, before + updates, before)

    # -- update -------------------------------------------------------------------------------

    def phase(self, step: int) -> tuple[int, int | None]:
        """Return the phase that holds `step`: the range (first, end) of steps served by one compiled update.

        `end` is None for the run's last phase. A new phase begins when a player or a part of a loss becomes active,
        so that inactive ones cost nothing. No phase but the last is shorter than `SHORTEST_PHASE`.
        """
        starts = {step for seat in self.system.players for step in (seat.start, *seat.switches)}
        first = 0
        for start in sorted(starts):
            if start < first + SHORTEST_PHASE or start >= self.steps:
                continue
            if step < start:
                return first, start
            first = start
        return first, None

    def update(
        self,
        state: TrainState,
        consts: PyTree,
        batch: PyTree,
        phase: tuple[int, int | None] = (0, None),
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Update every player that is due.

        Args:
          state: the state before the update.
          consts: the never-trained networks; a separate argument, so that XLA does not compile them in as constants.
          batch: ``{name: (B, ...)}``, B divisible by `accumulate`.
          phase: the (first, end) of the steps that the traced program is to serve, from the method `phase`; by
            default all steps.

        Returns:
          The next state and ``{name: () float32}``: the system's metrics, ``loss/<player>``, and
          ``grad_norm/<player>`` before clipping, in all and per top-level module. A player that is not due reports
          zeros.
        """
        with within(*phase):
            return self._update(state, consts, batch)

    def _update(self, state, consts, batch):
        micro = jax.tree.map(self._cut, batch)
        step_key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        params, opt, mutable = dict(state.params), dict(state.opt), state.mutable
        metrics, shared = {}, None
        for index, player in enumerate(self.system.players):
            key = jax.random.fold_in(step_key, index)

            def run(
                operand, player=player, key=key, carry=shared if player.shares_forward else None
            ):
                current, slots, mutable = operand
                return self._play(
                    player, current, slots, mutable, consts, micro, key, state.step, carry
                )

            operand = (params, opt[player.name], mutable)
            result = self._when_due(player, state.step, run, operand)
            params[player.name], opt[player.name], mutable, carry, seen = result
            shared = carry if index == 0 else shared
            metrics |= seen
        return (
            TrainState(
                step=state.step + 1,
                params=params,
                mutable=mutable,
                opt=opt,
                ema=self._average(state, params),
            ),
            metrics,
        )

    def _cut(self, x_b: jax.Array) -> jax.Array:
        """Cut (B, ...) into microbatches (A, B/A, ...); microbatch a takes rows a::A, so rows stay on their device."""
        rows = x_b.shape[0] // self.accumulate
        return x_b.reshape(rows, self.accumulate, *x_b.shape[1:]).swapaxes(0, 1)

    def _when_due(self, player: Player, step: jax.Array, run: Callable, operand: PyTree) -> PyTree:
        """Call `run` if the player is due; otherwise return the state untouched and zero metrics."""
        due = begun(step, player.start)
        if due is True and player.period == 1:
            return run(operand)
        if due is not False and player.period > 1:
            due = due & ((step - player.start) % player.period == 0)
        shapes = jax.eval_shape(run, operand)

        def rest(operand):
            params, slots, mutable = operand
            blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[3:])
            return params[player.name], slots, mutable, *blank

        return when(due, run, rest, operand)

    def _play(self, player, params, slots, mutable, consts, micro, key, step, carry):
        """Compute the gradient of one player and update it; returns (params, slots, mutable, carry, metrics)."""
        name = player.name
        trainable, frozen = self._split(name, params)

        def objective(trainable, mutable, batch, key, carry):
            vars = Vars({**params, name: paths.merge(trainable, frozen)}, mutable, consts)
            loss, out = self.system.loss(name, vars, batch, key, step, carry)
            return loss, Out(
                {f"loss/{name}": loss, **out.metrics},
                out.mutable,
                jax.lax.stop_gradient(out.carry),
                jnp.asarray(out.weight, jnp.float32),
            )

        def micro_gradient(mutable, batch, index, carry):
            return jax.value_and_grad(objective, has_aux=True)(
                trainable, mutable, batch, jax.random.fold_in(key, index), carry
            )

        def weighted(out, grads):
            return jax.tree.map(
                lambda x: x.astype(jnp.float32) * out.weight, (grads, out.metrics)
            ), out.weight

        if self.accumulate == 1:
            batch, here = jax.tree.map(lambda x: x[0], (micro, carry))
            (_, out), grads = micro_gradient(mutable, batch, 0, here)
            mutable, metrics = out.mutable, out.metrics
            carries = jax.tree.map(lambda x: x[None], out.carry)
        else:

            def body(state, xs):
                mutable, sums = state
                (_, out), grads = micro_gradient(mutable, *xs)
                return (out.mutable, jax.tree.map(jnp.add, sums, weighted(out, grads))), out.carry

            xs = (micro, jnp.arange(self.accumulate), carry)
            first = jax.tree.map(lambda x: x[0], xs)
            (_, out), grads = jax.eval_shape(micro_gradient, mutable, *first)
            sums = jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(weighted, out, grads)
            )
            (mutable, ((grads, metrics), weight)), carries = jax.lax.scan(body, (mutable, sums), xs)
            total = jnp.where(
                weight > 0, weight, 1.0
            )  # if the weight is 0, gradients and metrics are 0
            grads, metrics = jax.tree.map(lambda x: x / total, (grads, metrics))

        updates, slots = self._transform(name, trainable).update(grads, slots, trainable)
        trainable = optax.apply_updates(trainable, updates)
        metrics = {key: jnp.asarray(value, jnp.float32) for key, value in metrics.items()}
        metrics[f"grad_norm/{name}"] = optax.tree.norm(grads)
        if len(grads) > 1:
            for module, grad in grads.items():
                metrics[f"grad_norm/{name}/{module}"] = optax.tree.norm(grad)
        return paths.merge(frozen, trainable), slots, mutable, carries, metrics

    def _average(self, state: TrainState, params: PyTree) -> PyTree:
        if not self.ema.decay:
            return state.ema
        first = self.system.players[0].name
        decay = self.ema.at(state.step)
        fresh = {first: self._split(first, params)[0]}
        return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, fresh)
