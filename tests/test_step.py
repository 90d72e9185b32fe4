"""The update, checked against hand-derived gradients, an explicit Adam recursion, and what it promises."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion import paths
from vidmotion.errors import ConfigError
from vidmotion.optim import Optimizer, Schedule
from vidmotion.step import Ema, Stepper
from vidmotion.system import Out, Player, System

RATE, BETA1, BETA2, EPS = 0.1, 0.9, 0.999, 1e-8


@dataclasses.dataclass(frozen=True)
class Toy(System):
    """Linear regression with a second player, small enough to differentiate by hand.

    model: the mean of |x w + b - y|^2 over the rows that `mask` keeps, plus noise * mean(b) * a draw from N(0, 1).
    critic: v * p, where p is the mean prediction, which it is given or computes itself.
    """

    seats: tuple[Player, ...] = (Player("model"),)
    compute: str = "float32"
    noise: float = 0.0

    @property
    def players(self):
        return self.seats

    def input_spec(self, batch):
        return {
            "x": jax.ShapeDtypeStruct((batch, 3), jnp.float32),
            "y": jax.ShapeDtypeStruct((batch, 2), jnp.float32),
            "mask": jax.ShapeDtypeStruct((batch,), jnp.float32),
        }

    def init(self, key, batch):
        params = {
            "model": {"head": {"w": jax.random.normal(key, (3, 2))}, "tail": {"b": jnp.ones(2)}},
            "critic": {"v": jnp.ones(())},
        }
        return {player.name: params[player.name] for player in self.seats}

    def init_mutable(self):
        return {"calls": jnp.zeros((), jnp.int32)}

    def _predict(self, params, x):
        dtype = jnp.dtype(self.compute)
        w, b = params["model"]["head"]["w"], params["model"]["tail"]["b"]
        return x.astype(dtype) @ w.astype(dtype) + b.astype(dtype)[None]

    def loss(self, player, vars, batch, key, step, carry):
        mutable = {"calls": vars.mutable["calls"] + 1}
        weight = jnp.sum(batch["mask"])
        prediction = self._predict(vars.params, batch["x"])
        if player == "critic":
            seen = jnp.mean(prediction) if carry is None else carry
            return vars.params["critic"]["v"] * seen, Out({"seen": seen}, mutable)
        error = jnp.sum((prediction - batch["y"]) ** 2, axis=1) * batch["mask"]
        noise = jax.random.normal(key)
        loss = jnp.sum(error) / weight
        loss += self.noise * noise * jnp.mean(vars.params["model"]["tail"]["b"])
        metrics = {"noise": noise, "noise_squared": noise**2}
        return loss, Out(metrics, mutable, jnp.mean(prediction), weight)


def batch_of(rows=8, seed=0, mask=None):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, 3)).astype(np.float32),
        "y": rng.normal(size=(rows, 2)).astype(np.float32),
        "mask": np.ones(rows, np.float32) if mask is None else np.asarray(mask, np.float32),
    }


def stepper_of(system=None, steps=100, seed=0, accumulate=1, ema=None, **optimizer):
    system = system or Toy()
    optimizer = {"rate": RATE} | optimizer
    return Stepper(
        system,
        {player.name: Optimizer(**optimizer) for player in system.players},
        steps=steps,
        seed=seed,
        accumulate=accumulate,
        ema=ema or Ema(),
    )


def start(stepper):
    return stepper.init_state(stepper.init_params(batch_of(1)))


def run(stepper, count, batch=None):
    """Makes `count` updates; returns the states before and after each, the metrics, and the compiled update."""
    update = jax.jit(stepper.update)
    states, metrics = [start(stepper)], []
    for _ in range(count):
        state, seen = update(states[-1], {}, batch or batch_of())
        states.append(state)
        metrics.append({name: float(value) for name, value in seen.items()})
    return states, metrics, update


def by_hand(state, batch):
    """Returns the loss and gradients of the model player in float64."""
    w = np.asarray(state.params["model"]["head"]["w"], np.float64)
    b = np.asarray(state.params["model"]["tail"]["b"], np.float64)
    mask = batch["mask"][:, None].astype(np.float64)
    residual = (batch["x"] @ w + b - batch["y"]) * mask
    grad_w, grad_b = 2 * batch["x"].T @ residual / mask.sum(), 2 * residual.sum(0) / mask.sum()
    return (residual**2).sum() / mask.sum(), grad_w, grad_b


def adam(value, grads):
    """Returns `value` after Adam (Kingma & Ba, algorithm 1) has seen `grads` in turn."""
    m = v = 0.0
    for t, grad in enumerate(grads, 1):
        m, v = BETA1 * m + (1 - BETA1) * grad, BETA2 * v + (1 - BETA2) * grad**2
        value = value - RATE * (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPS)
    return value


def counts(state, player):
    """Returns the update counts that a player's optimizer keeps."""
    leaves = jax.tree.leaves(state.opt[player])
    return {int(leaf) for leaf in leaves if leaf.ndim == 0 and leaf.dtype == jnp.int32}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_microbatches_make_one_update_of_the_whole_batch(accumulate):
    batch = batch_of()
    states, metrics, _ = run(stepper_of(accumulate=accumulate), 3, batch)
    grads = [by_hand(state, batch) for state in states[:3]]
    for seen, (loss, grad_w, grad_b) in zip(metrics, grads):
        np.testing.assert_allclose(seen["loss/model"], loss, rtol=1e-6)
        norms = np.linalg.norm(grad_w), np.linalg.norm(grad_b)
        np.testing.assert_allclose(seen["grad_norm/model/head"], norms[0], rtol=1e-6)
        np.testing.assert_allclose(seen["grad_norm/model/tail"], norms[1], rtol=1e-6)
        np.testing.assert_allclose(seen["grad_norm/model"], np.hypot(*norms), rtol=1e-6)
    begin = np.asarray(states[0].params["model"]["head"]["w"], np.float64)
    np.testing.assert_allclose(
        states[3].params["model"]["head"]["w"], adam(begin, [g[1] for g in grads]), atol=1e-5
    )  # the float32 bias correction 1 - 0.999^t has only five correct digits
    assert int(states[3].step) == 3
    assert int(states[3].mutable["calls"]) == 3 * accumulate  # handed from microbatch to microbatch


def test_uneven_microbatches_count_by_their_weight():
    # Microbatch a takes rows a::2, so the two microbatches have weights 4 and 1.
    batch = batch_of(mask=[1, 0, 1, 0, 1, 1, 1, 0])
    states, metrics, _ = run(stepper_of(accumulate=2), 1, batch)
    loss, grad_w, grad_b = by_hand(states[0], batch)
    np.testing.assert_allclose(metrics[0]["loss/model"], loss, rtol=1e-6)
    np.testing.assert_allclose(
        metrics[0]["grad_norm/model"],
        np.hypot(np.linalg.norm(grad_w), np.linalg.norm(grad_b)),
        rtol=1e-6,
    )
    halves = [by_hand(states[0], {k: v[a::2] for k, v in batch.items()})[0] for a in range(2)]
    assert abs(np.mean(halves) - loss) > 1e-2  # an unweighted mean would give another number


def test_a_player_off_duty_stands_still():
    seats = (Player("model"), Player("critic", start=2, period=3))
    states, metrics, update = run(stepper_of(Toy(seats)), 9)
    due = {2, 5, 8}
    done = 0
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        moved = float(before.params["critic"]["v"]) != float(after.params["critic"]["v"])
        done += step in due
        assert moved == (step in due)
        assert counts(after, "critic") == {done}
        assert counts(after, "model") == {step + 1}
        assert (metrics[step]["grad_norm/critic"] != 0) == (step in due)
        assert int(after.mutable["calls"]) == step + 1 + done
    assert update._cache_size() == 1


def late(start):
    return stepper_of(Toy((Player("model"), Player("critic", start=start))), steps=200)


def test_a_phase_ends_where_a_player_begins():
    assert late(120).phase(0) == late(120).phase(119) == (0, 120)
    assert late(120).phase(120) == late(120).phase(199) == (120, None)
    assert late(5).phase(0) == (0, None)  # too early to be worth a program of its own
    assert late(200).phase(0) == (0, None)  # never reached


def test_a_phase_computes_the_same_and_leaves_out_what_has_not_begun():
    stepper, state = late(120), start(late(120))
    early = jax.jit(functools.partial(stepper.update, phase=stepper.phase(0)))
    always = jax.jit(stepper.update)
    for step in (0, 120, 150):
        before = dataclasses.replace(state, step=jnp.int32(step))
        here = jax.jit(functools.partial(stepper.update, phase=stepper.phase(step)))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-6),
            here(before, {}, batch_of()),
            always(before, {}, batch_of()),
        )

    def flops(update):
        return update.lower(state, {}, batch_of()).cost_analysis()["flops"]

    assert flops(early) < flops(always)


@pytest.mark.parametrize(("start", "period", "updates"), [(0, 1, 12), (4, 1, 8), (3, 4, 3)])
def test_a_schedule_spans_the_updates_its_player_will_make(start, period, updates):
    # With these betas Adam's step is as large as the rate, and the critic's gradient keeps its sign.
    seats = (Player("model"), Player("critic", start=start, period=period))
    stepper = stepper_of(Toy(seats), steps=12, schedule=Schedule("linear"), betas=(0.0, 0.0))
    states, _, _ = run(stepper, 12)
    values = [float(state.params["critic"]["v"]) for state in states]
    moves = [abs(b - a) for a, b in itertools.pairwise(values) if a != b]
    expected = [RATE * (1 - n / updates) for n in range(updates)]
    np.testing.assert_allclose(moves, expected, rtol=1e-4)


def test_a_whole_schedule_has_run_since_step_0():
    seats = (Player("model"), Player("critic", start=4, whole_schedule=True))
    stepper = stepper_of(Toy(seats), steps=12, schedule=Schedule("linear"), betas=(0.0, 0.0))
    states, _, _ = run(stepper, 12)
    values = [float(state.params["critic"]["v"]) for state in states]
    expected = [0.0] * 4 + [RATE * (1 - n / 12) for n in range(4, 12)]
    moves = [abs(b - a) for a, b in itertools.pairwise(values)]
    np.testing.assert_allclose(moves, expected, rtol=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("shares", [True, False])
def test_a_later_player_sees_the_first_ones_outputs_or_its_updated_weights(shares, accumulate):
    seats = (Player("model"), Player("critic", shares_forward=shares))
    batch = batch_of()
    states, metrics, _ = run(stepper_of(Toy(seats), accumulate=accumulate), 1, batch)
    read = states[0 if shares else 1].params["model"]
    expected = np.mean(batch["x"] @ np.asarray(read["head"]["w"]) + np.asarray(read["tail"]["b"]))
    np.testing.assert_allclose(metrics[0]["seen"], expected, rtol=1e-5)
    # d(v * p) / dv = p: the model's weights are constants in the critic's update.
    np.testing.assert_allclose(metrics[0]["grad_norm/critic"], abs(expected), rtol=1e-5)


def test_frozen_leaves_keep_their_bits_and_have_neither_slots_nor_average():
    stepper = stepper_of(
        trainable=(("tail/.*", False), (".*", True)), weight_decay=0.1, ema=Ema(0.5)
    )
    states, metrics, _ = run(stepper, 3)
    first, last = states[0].params["model"], states[3].params["model"]
    np.testing.assert_array_equal(first["tail"]["b"], last["tail"]["b"])
    assert np.any(np.asarray(first["head"]["w"]) != np.asarray(last["head"]["w"]))
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(states[0].opt) if leaf.ndim)
    assert shapes == [(3, 2), (3, 2)]  # two moments of w, none of b
    assert list(paths.flatten(states[3].ema)) == ["model/head/w"]
    _, grad_w, _ = by_hand(states[0], batch_of())
    np.testing.assert_allclose(
        metrics[0]["grad_norm/model"], np.linalg.norm(grad_w), rtol=1e-6
    )  # the frozen gradient is not in the norm


@pytest.mark.parametrize(
    ("ema", "decays"),
    [
        (Ema(0.6, warmup=False), [0.6] * 8),
        (Ema(0.4), [0.1, 2 / 11, 0.25, 4 / 13, 5 / 14, 0.4, 0.4, 0.4]),
    ],
)
def test_average_follows_its_recursion(ema, decays):
    states, _, _ = run(stepper_of(ema=ema), 8)
    weights = [np.asarray(state.params["model"]["head"]["w"], np.float64) for state in states]
    average = weights[0]
    for decay, weight, state in zip(decays, weights[1:], states[1:]):
        average = decay * average + (1 - decay) * weight
        np.testing.assert_allclose(state.ema["model"]["head"]["w"], average, rtol=1e-5)
    averaged = states[-1].averaged_params()["model"]["head"]["w"]
    np.testing.assert_array_equal(averaged, states[-1].ema["model"]["head"]["w"])


def test_bfloat16_compute_keeps_float32_state():
    states, metrics, _ = run(stepper_of(Toy(compute="bfloat16"), ema=Ema(0.9)), 2)
    kept = jax.tree.leaves((states[2].params, states[2].opt, states[2].ema))
    assert {leaf.dtype for leaf in kept} == {jnp.dtype("float32"), jnp.dtype("int32")}
    loss, *_ = by_hand(states[0], batch_of())
    # With the 8 bits of mantissa of bfloat16 the losses are close, but not equal.
    assert 0 < abs(metrics[0]["loss/model"] - loss) < 0.02 * loss


def test_randomness_is_a_function_of_seed_step_and_microbatch():
    noisy = Toy(noise=1.0)
    _, first, _ = run(stepper_of(noisy), 3)
    _, again, _ = run(stepper_of(noisy), 3)
    _, other_batch, _ = run(stepper_of(noisy), 3, batch_of(seed=5))
    _, other_seed, _ = run(stepper_of(noisy, seed=1), 3)
    noise = [seen["noise"] for seen in first]
    assert len(set(noise)) == 3
    assert noise == [seen["noise"] for seen in again] == [seen["noise"] for seen in other_batch]
    assert not set(noise) & {seen["noise"] for seen in other_seed}
    _, micro, _ = run(stepper_of(noisy, accumulate=2), 1)
    # The two microbatches have different draws, not the same one twice.
    assert micro[0]["noise_squared"] - micro[0]["noise"] ** 2 > 1e-4


def test_players_draw_different_randomness():
    class Both(Toy):
        def loss(self, player, vars, batch, key, step, carry):
            draw = jax.random.normal(key)
            value = vars.params["critic"]["v"] if player == "critic" else jnp.zeros(())
            return value, Out({f"draw/{player}": draw}, vars.mutable)

    _, metrics, _ = run(stepper_of(Both((Player("model"), Player("critic")))), 1)
    assert metrics[0]["draw/model"] != metrics[0]["draw/critic"]


def test_a_batch_without_weight_changes_nothing_but_the_counts():
    batch = batch_of(mask=np.ones(8))
    stepper = stepper_of(Masked(), accumulate=2)
    states, metrics, _ = run(stepper, 1, batch | {"mask": np.zeros(8, np.float32)})
    np.testing.assert_array_equal(
        states[0].params["model"]["head"]["w"], states[1].params["model"]["head"]["w"]
    )
    assert metrics[0]["loss/model"] == 0.0


class Masked(Toy):
    """A toy whose loss is finite on an empty microbatch, as that of a masked mean should be."""

    def loss(self, player, vars, batch, key, step, carry):
        error = jnp.sum((self._predict(vars.params, batch["x"]) - batch["y"]) ** 2, axis=1)
        weight = jnp.sum(batch["mask"])
        loss = jnp.sum(error * batch["mask"]) / jnp.maximum(weight, 1.0)
        return loss, Out({}, vars.mutable, (), weight)


def test_optimizers_must_be_the_systems_players():
    with pytest.raises(ConfigError, match=r"\['critic', 'model'\].*\['model'\]"):
        Stepper(Toy(), {"model": Optimizer(RATE), "critic": Optimizer(RATE)}, steps=1)


@pytest.mark.parametrize("accumulate", [0, -2])
def test_a_count_of_microbatches_below_one_is_refused(accumulate):
    with pytest.raises(ConfigError, match="accumulate"):
        stepper_of(accumulate=accumulate)
