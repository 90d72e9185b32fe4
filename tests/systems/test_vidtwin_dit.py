"""Class-conditional diffusion of VidTwin's latents: its loss, guidance, sampling, that it learns, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from quick import quick_jit, random_like

from vidmotion import paths
from vidmotion import system as systems
from vidmotion.data import encoded
from vidmotion.data.encoded import Moments, VidTwinLatentsSource
from vidmotion.data.records import DatasetError, DatasetWriter
from vidmotion.errors import ConfigError
from vidmotion.system import Vars, check_batch

CLASSES = ("a", "b", "c")
TINY = dict(
    name="vidtwin_dit",
    structure=(3, 3, 3, 2),
    dynamics=(4, 6, 3),
    classes=3,
    class_width=12,
    width=16,
    layers=1,
    heads=2,
)
NUMBERS = 3 * 3 * 3 * 2 + 4 * 6 * 3


def clips(count, seed=0):
    """Returns latents of three classes: each class has its own mean, and each channel its own scale."""
    rng = np.random.default_rng(seed)
    label = (np.arange(count) % 3).astype(np.int32)
    shift = 3.0 * (label - 1)[:, None, None, None]
    structure = 5.0 + rng.normal(size=(count, 3, 3, 3, 2)) * [0.1, 2.0] + 0.2 * shift[..., None]
    dynamics = -1.0 + rng.normal(size=(count, 4, 6, 3)) * [1.0, 0.5, 3.0] - shift
    return {
        "structure": structure.astype(np.float32),
        "dynamics": dynamics.astype(np.float32),
        "label": label,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes a dataset as `encode` does; returns its folder."""
    path, batch = tmp_path_factory.mktemp("latents") / "all", clips(30)
    moments = {name: Moments() for name in encoded.LATENTS}
    provenance = {"classes": list(CLASSES), "command": "none"}
    with DatasetWriter(path, "vidtwin_latents", provenance=provenance) as writer:
        for i in range(30):
            writer.write("train", {name: value[i] for name, value in batch.items()})
            for name, moment in moments.items():
                moment.add(batch[name][i])
        statistics = paths.flatten({name: moment.result() for name, moment in moments.items()})
        writer.attach(encoded.STATISTICS, safetensors.numpy.save(statistics))
    return str(path)


def build(folder, **fields):
    return systems.build({**TINY, "latents": folder, **fields})


@pytest.fixture(scope="module")
def tiny(folder):
    """Returns (system, fresh variables, random variables without zeros that hide errors)."""
    system = build(folder)
    consts = {name: const.load() for name, const in system.consts_spec().items()}
    fresh = quick_jit(system.init)(jax.random.key(0), clips(1))
    vivid = random_like(jax.eval_shape(lambda: fresh), scale=0.3)
    return system, Vars(fresh, {}, consts), Vars(vivid, {}, consts)


# -- data -----------------------------------------------------------------------------------------


def test_records_and_statistics(folder):
    source, batch = VidTwinLatentsSource(folder), clips(30)
    assert len(source) == 30 and source.classes == CLASSES
    np.testing.assert_array_equal(source[4]["dynamics"], batch["dynamics"][4])
    assert source[4]["label"] == 1
    found = encoded.VidTwinLatentsSource.read_attached(folder)
    for name in ("structure", "dynamics"):
        flat = batch[name].astype(np.float64).reshape(-1, batch[name].shape[-1])
        np.testing.assert_allclose(found[f"{name}/mean"], flat.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(found[f"{name}/std"], flat.std(axis=0), rtol=1e-5)


def test_a_channel_that_never_varies_divides_nothing_by_zero():
    moments = Moments()
    moments.add(np.full((5, 2), 0.1, np.float32))
    assert np.all(moments.result()["std"] > 0)


def test_what_is_no_such_folder_is_refused(tmp_path):
    with pytest.raises(
        DatasetError, match="no clips encoded by a trained VidTwin; write them with"
    ):
        VidTwinLatentsSource(tmp_path)
    with DatasetWriter(tmp_path / "other", "codes") as writer:
        writer.write("train", {"ids": np.zeros(3)})
    with pytest.raises(DatasetError, match=r"expected clips .* trained VidTwin"):
        VidTwinLatentsSource(tmp_path / "other")


# -- loss -----------------------------------------------------------------------------------------


def test_a_clip_is_a_row_of_unit_variance_and_back(tiny):
    system, fresh, _ = tiny
    batch = clips(30)
    row = np.asarray(system._row(fresh.consts, batch))
    assert row.shape == (30, NUMBERS) == (30, system.numbers)
    dynamics = row[:, 54:].reshape(-1, 3)
    np.testing.assert_allclose(dynamics.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(dynamics.std(axis=0), 1.0, atol=1e-5)
    back = system._latents(fresh.consts, row)
    for name in ("structure", "dynamics"):
        np.testing.assert_allclose(back[name], batch[name], atol=1e-5)
    check_batch(system, batch, 30)


def test_knowing_nothing_costs_the_variance(tiny):
    """A fresh network predicts zero, so the loss is the mean square of the normalised data, which is one."""
    system, fresh, _ = tiny
    loss, out = quick_jit(
        lambda batch: system.loss("model", fresh, batch, jax.random.key(0), 0, ())
    )(clips(30))
    assert float(loss) == pytest.approx(1.0, rel=1e-4)
    parts = [float(out.metrics[f"mse/{name}"]) for name in ("structure", "dynamics")]
    assert float(loss) == pytest.approx((54 * parts[0] + 72 * parts[1]) / NUMBERS, rel=1e-5)


def test_the_network_is_asked_for_the_clean_row_at_a_time_of_the_schedule(tiny):
    """A network that returns the clean row has no loss; its input is sqrt(abar) x_0 + sqrt(1 - abar) n."""
    system, fresh, _ = tiny
    batch, asked = clips(256), []
    clean = system._row(fresh.consts, batch)

    def predict(params, x_bn, time_b, label_b):
        asked.append((np.asarray(x_bn), np.asarray(time_b), np.asarray(label_b)))
        return clean

    oracle = build(system.latents)
    object.__setattr__(oracle, "_predict", predict)
    loss, _ = oracle.loss("model", fresh, batch, jax.random.key(0), 0, ())
    assert float(loss) == 0.0
    ((x, time, label),) = asked
    assert time.min() >= 0 and time.max() <= 999 and len(np.unique(time)) > 200
    # The betas go from 1e-4 to 2e-2 in even steps.
    abar = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[time][:, None]
    noise = (x - np.sqrt(abar) * clean) / np.sqrt(1 - abar)
    late = time > 100
    assert noise[late].mean() == pytest.approx(0, abs=0.02)
    assert noise[late].std() == pytest.approx(1, abs=0.02)
    kept = label != 3
    np.testing.assert_array_equal(label[kept], batch["label"][kept])


def test_one_class_in_five_is_dropped(tiny):
    system, _, _ = tiny
    label = jnp.arange(100_000, dtype=jnp.int32) % 3
    dropped = np.asarray(system._drop(jax.random.key(1), label))
    gone = dropped == 3
    assert gone.mean() == pytest.approx(0.2, abs=5 * np.sqrt(0.2 * 0.8 / 1e5))
    np.testing.assert_array_equal(dropped[~gone], np.asarray(label)[~gone])
    assert len({round(gone[np.asarray(label) == k].mean(), 1) for k in range(3)}) == 1


def test_filling_takes_no_part(tiny):
    """With 3 queries, rows and columns in patches of two, 8 tokens hold 54 real numbers out of 128."""
    system, _, vivid = tiny
    assert system.patches[0].mask().sum() == 54
    batch, key = clips(6), jax.random.key(0)

    def loss(bias):
        params = paths.unflatten(
            {**paths.flatten(vivid.params), "model/final_structure/bias": bias}
        )
        return system.loss("model", vivid._replace(params=params), batch, key, 0, ())[0]

    gradient = quick_jit(jax.grad(loss))(jnp.zeros(16))
    # A token of structure has 2 x 2 x 2 places of 2 channels; each place is real in some token.
    assert gradient.shape == (16,) and np.all(np.abs(gradient) > 0)
    # The last place, (1, 1, 1), is real in one of eight tokens, the first place in all of them.
    first, last = np.abs(gradient[:2]).mean(), np.abs(gradient[-2:]).mean()
    assert last < 0.6 * first


# -- sampling -------------------------------------------------------------------------------------


def gaussian(system, means, s):
    """Gives the system the optimal denoiser for clips that are normally distributed about their class's mean."""
    abar = jnp.asarray(system.diffusion.alpha_bar(), jnp.float32)

    def predict(params, x_bn, time_b, label_b):
        a2 = abar[time_b][:, None]
        mean = jnp.asarray(means, jnp.float32)[label_b][:, None]
        gain = jnp.sqrt(a2) * s**2 / (a2 * s**2 + 1 - a2)
        return mean + gain * (x_bn - jnp.sqrt(a2) * mean)

    object.__setattr__(system, "_predict", predict)
    object.__setattr__(system, "_latents", lambda consts, x_bn: x_bn)
    return system


@pytest.mark.parametrize("steps", [50, 500])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_gaussian_classes_are_sampled_as_their_closed_form(folder, steps, scale):
    """For normal classes of one deviation s, guided clean predictions are those for a normal distribution about
    mean_none + w (mean_class - mean_none). DDIM is linear in it: at each step the deviation from sqrt(abar) * mean
    grows by (sqrt(abar' abar) s^2 + sqrt((1 - abar') (1 - abar))) / (abar s^2 + 1 - abar)."""
    s, means = 0.5, [1.0, -1.0, 0.5, 0.1]
    system = gaussian(build(folder), means, s)
    label = jnp.asarray([0, 1, 2] * 20)
    out = np.asarray(
        quick_jit(
            lambda key: system.sample(
                Vars({}, {}, {}), {"label": label}, key, steps=steps, guidance_scale=scale
            )
        )(jax.random.key(0))
    )
    abar = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    times = np.arange(steps)[::-1] * (1000 // steps)
    passed = np.append(abar[times], 1.0)
    growth = np.prod(
        (np.sqrt(passed[1:] * passed[:-1]) * s**2 + np.sqrt((1 - passed[1:]) * (1 - passed[:-1])))
        / (passed[:-1] * s**2 + 1 - passed[:-1])
    )
    noise = np.asarray(jax.random.normal(jax.random.key(0), (60, NUMBERS)))
    wanted = 0.1 + scale * (np.asarray(means)[np.asarray(label)] - 0.1)
    start = noise - np.sqrt(passed[0]) * wanted[:, None]
    np.testing.assert_allclose(out, wanted[:, None] + growth * start, atol=2e-4)
    # DDIM with 50 steps loses some of the spread; in the limit of many steps it is s.
    assert growth == pytest.approx(s, rel={50: 0.08, 500: 0.01}[steps])


def test_guidance_is_none_plus_five_times_what_the_class_adds(tiny):
    """A sample made in one step is the guided prediction itself."""
    system, _, vivid = tiny
    batch, key = {"label": jnp.asarray([0, 2])}, jax.random.key(3)
    noise = jax.random.normal(key, (2, NUMBERS))
    time = jnp.zeros(2, jnp.int32)  # a single step over the schedule of 1000 is its first time

    @quick_jit
    def parts(params):
        given = system._predict(params, noise, time, batch["label"])
        none = system._predict(params, noise, time, jnp.full(2, 3))
        return given, none

    given, none = parts(vivid.params)
    assert np.abs(given - none).max() > 1e-2
    out = quick_jit(lambda v: system.sample(v, batch, key, steps=1))(vivid)
    want = system._latents(vivid.consts, none + 5.0 * (given - none))
    for name in ("structure", "dynamics"):
        np.testing.assert_allclose(out[name], want[name], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_it_learns_its_classes(folder):
    """Samples of a class are nearer to that class's mean than to another's."""
    system = build(folder, width=32)
    consts = {name: const.load() for name, const in system.consts_spec().items()}
    batch = clips(48, seed=1)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def learn(key):
        params = system.init(key, batch)

        def step(carry, key):
            params, state = carry
            loss, grad = jax.value_and_grad(
                lambda p: system.loss("model", Vars(p, {}, consts), batch, key, 0, ())[0]
            )(params)
            update, state = optimizer.update(grad, state)
            return (optax.apply_updates(params, update), state), loss

        keys = jax.random.split(key, 500)
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), keys)
        return params, losses

    params, losses = learn(jax.random.key(0))
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])
    label = jnp.asarray([0, 1, 2] * 8)
    made = jax.jit(
        lambda p: system.sample(
            Vars(p, {}, consts), {"label": label}, jax.random.key(1), guidance_scale=2.0
        )
    )(params)
    means = np.asarray(made["dynamics"]).mean(axis=(1, 2, 3))
    nearest = np.abs(means[:, None] - (-1.0 - 3.0 * np.array([-1, 0, 1]))).argmin(axis=1)
    assert np.mean(nearest == np.asarray(label)) >= 0.9


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(structure=(3, 3, 3)),
            r"structure=\(3, 3, 3\), .*: they must be 4 and 3 positive sizes",
        ),
        (
            dict(dynamics_patch=(2, 2, 2)),
            r"dynamics is a video of one frame, so the first size must be 1",
        ),
        (dict(heads=3), r"width=16 must be divisible by heads=3"),
        (dict(classes=0), r"classes=0 must be at least 1"),
        (dict(guidance={"drop": 1.0}), r"guidance\.drop=1\.0 must be at least 0 and below 1"),
        (dict(guidance={"weight": 1.0}), r"system\.guidance: .*Known fields: drop, scale"),
        (
            dict(sampler={"steps": 1001}),
            r"sampler\.steps: steps must be from 1 to 1000, the length of the schedule, got 1001",
        ),
        (dict(diffusion={"schedule": "cosine"}), r"system\.diffusion: schedule 'cosine': choose"),
        (dict(compute="float16"), r"choose float32 or bfloat16"),
    ],
)
def test_fields_that_do_not_fit_are_named(folder, fields, message):
    with pytest.raises(ConfigError, match=message):
        build(folder, **fields)


def test_latents_of_another_vidtwin_are_refused(folder):
    for fields, message in (
        (dict(structure=(3, 3, 3, 5)), r"comes from a VidTwin of another shape: .*\(2,\).*\(5,\)"),
        (dict(classes=4), r"classes=4, but the latents .* have 3 classes \(a, b, c, ...\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(folder, **fields).consts_spec()["statistics"].load()
