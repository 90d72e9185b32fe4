"""The motion generator as a system: frozen codebooks, its loss, decoding, that it learns, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from quick import quick_jit, random_like

from vidmotion import evaluation, paths, sharding
from vidmotion import system as systems
from vidmotion.data import encoded
from vidmotion.data.records import DatasetError
from vidmotion.errors import ConfigError
from vidmotion.models.quantizer import GroupedQuantizer
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.system import Vars
from vidmotion.train import train

BOOKS, ENTRIES, DIM, FRAMES, CLIPS = 3, 5, 4, 6, 8
TINY = dict(
    name="motion_gpt",
    frames=FRAMES,
    books=BOOKS,
    entries=ENTRIES,
    dim=DIM,
    content_tokens=2,
    content_width=6,
    width=16,
    layers=1,
    heads=2,
    max_positions=8,
)


@pytest.fixture(scope="module")
def theirs():
    """Returns the quantiser of a BCD with a learned alpha, as (module, parameters)."""
    net = GroupedQuantizer(books=BOOKS, entries=ENTRIES, dim=DIM, learn_alpha=True)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 1, BOOKS * DIM)))
    return net, random_like(shapes["params"], scale=0.7)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    """Writes the quantiser's codebooks as `encode` does; returns the folder."""
    path = tmp_path_factory.mktemp("codes")
    arrays = {name: np.asarray(value) for name, value in paths.flatten(theirs[1]).items()}
    (path / encoded.QUANTIZER).write_bytes(safetensors.numpy.save(arrays))
    return str(path)


def build(folder, **fields):
    return systems.build({**TINY, "codes": folder, **fields})


def random_batch(count=CLIPS, frames=FRAMES):
    rng = np.random.default_rng(0)
    return {
        "content": rng.normal(size=(count, 2, 6)).astype(np.float32),
        "ids": rng.integers(0, ENTRIES, (count, frames, BOOKS)).astype(np.int32),
    }


@pytest.fixture(scope="module")
def tiny(folder):
    """Returns (system, fresh variables, random variables without zeros that hide errors)."""
    system = build(folder)
    consts = {name: const.load() for name, const in system.consts_spec().items()}
    fresh = quick_jit(system.init)(jax.random.key(0), random_batch())
    vivid = random_like(jax.eval_shape(lambda: fresh), scale=0.4)
    return system, Vars(fresh, {}, consts), Vars(vivid, {}, consts)


def test_a_frame_is_the_bcds_own_quantised_motion(tiny, theirs):
    system, fresh, _ = tiny
    net, params = theirs
    motion = np.random.default_rng(1).normal(size=(2, 7, BOOKS * DIM)).astype(np.float32)
    code = net.apply({"params": params}, motion)
    assert len(np.unique(code.ids_btn)) > 2
    np.testing.assert_allclose(system.embed(fresh.consts, code.ids_btn), code.m_hat_btm, atol=1e-6)


def test_knowing_nothing_costs_ln_of_the_entries(tiny):
    system, fresh, _ = tiny
    score = quick_jit(system.score)(fresh, random_batch())
    assert score.shape == (CLIPS,)
    np.testing.assert_allclose(score, math.log(ENTRIES), rtol=0.08)
    assert system.uniform_loss == pytest.approx(math.log(5))


def test_every_parameter_learns_and_no_codebook_does(tiny):
    system, _, vivid = tiny

    @quick_jit
    @jax.grad
    def gradient(params):
        vars = vivid._replace(params=params)
        return system.loss("model", vars, random_batch(), jax.random.key(0), 0, ())[0]

    flat = paths.flatten(gradient(vivid.params))
    assert [path for path, leaf in flat.items() if not np.any(leaf)] == []
    shapes = {leaf.shape for leaf in flat.values()}
    assert (BOOKS, ENTRIES, DIM) not in shapes and not any("codebooks" in path for path in flat)


def test_loss_is_the_mean_score_without_dropout(folder, tiny):
    _, _, vivid = tiny
    system = build(folder, dropout=0.0)
    batch = random_batch()

    def loss_of(system):
        return quick_jit(lambda: system.loss("model", vivid, batch, jax.random.key(0), 0, ()))()

    loss, out = loss_of(system)
    score = quick_jit(system.score)(vivid, batch)
    assert float(loss) == pytest.approx(float(np.mean(score)), rel=1e-5)
    assert float(out.metrics["cross_entropy"]) == float(loss)
    dropped, _ = loss_of(build(folder, dropout=0.5))
    assert abs(float(dropped) - float(loss)) > 1e-3


def test_greedy_codes_are_what_each_position_predicts(tiny):
    """Decoding step by step with a cache equals one pass over the whole sequence that it produced."""
    system, _, vivid = tiny
    content = random_batch()["content"]
    sample = quick_jit(lambda key: system.sample(vivid, {"content": content}, key)["ids"])
    ids = sample(jax.random.key(0))
    assert ids.shape == (CLIPS, FRAMES, BOOKS) and ids.dtype == jnp.int32
    np.testing.assert_array_equal(ids, sample(jax.random.key(1)))
    assert len(np.unique(ids)) == ENTRIES and np.any(ids[:, 1:] != ids[:, :-1])
    logits = system._net.apply(
        {"params": vivid.params["model"]}, content, system.embed(vivid.consts, ids[:, :-1])
    )
    np.testing.assert_array_equal(np.argmax(logits, axis=-1), ids)


def test_one_device_and_eight_generate_alike(tiny):
    system, _, vivid = tiny
    content = random_batch()["content"]

    def sample(vars, content):
        return system.sample(vars, {"content": content}, jax.random.key(0))["ids"]

    mesh = sharding.make_mesh({"data": 8})
    cut = jax.device_put(content, sharding.batch(mesh))
    assert len(cut.sharding.device_set) == 8
    there = quick_jit(sample)(jax.device_put(vivid, sharding.replicated(mesh)), cut)
    np.testing.assert_array_equal(there, quick_jit(sample)(vivid, content))


def test_temperature_and_top_k(tiny):
    system, _, vivid = tiny
    content = {"content": random_batch()["content"]}

    def sample(key, **options):
        return np.asarray(
            quick_jit(lambda key: system.sample(vivid, content, key, **options)["ids"])(key)
        )

    greedy, key = sample(jax.random.key(0)), jax.random.key(3)
    np.testing.assert_array_equal(sample(key, temperature=1.0, top_k=1), greedy)
    drawn = sample(key, temperature=2.0)
    assert np.any(drawn != greedy)
    np.testing.assert_array_equal(sample(key, temperature=2.0), drawn)
    for options, message in (
        (dict(temperature=-1.0), r"temperature=-1\.0 must be at least 0"),
        (dict(top_k=6, temperature=1.0), "top_k=6 from 1 to the 5 entries"),
        (dict(frames=9), "frames=9: choose 1 to 8"),
    ):
        with pytest.raises(ConfigError, match=message):
            sample(key, **options)
    # Eight positions hold the content and seven frames; the eighth frame is predicted and never read.
    assert sample(key, frames=8).shape == (CLIPS, 8, BOOKS)


def test_it_learns_a_cycle_whose_phase_is_the_content(folder):
    """The codes cycle from a start that only the content reveals; training must reproduce them."""
    system = build(folder, dropout=0.0)
    phases = np.arange(ENTRIES)
    content = np.zeros((ENTRIES, 2, 6), np.float32)
    content[phases, 0, phases] = 3.0
    cycle = (phases[:, None] + np.arange(FRAMES)) % ENTRIES
    ids = np.stack([cycle, (cycle + 1) % ENTRIES, (2 * cycle) % ENTRIES], axis=-1).astype(np.int32)
    batch = {"content": content, "ids": ids}
    consts = {name: const.load() for name, const in system.consts_spec().items()}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def learn(key):
        params = system.init(key, batch)

        def step(carry, _):
            params, state = carry
            loss, grad = jax.value_and_grad(
                lambda p: system.loss("model", Vars(p, {}, consts), batch, key, 0, ())[0]
            )(params)
            update, state = optimizer.update(grad, state)
            return (optax.apply_updates(params, update), state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
        return params, losses

    params, losses = learn(jax.random.key(0))
    assert losses[0] == pytest.approx(math.log(ENTRIES), rel=0.1)
    assert losses[-1] < 0.05
    vars = Vars(params, {}, consts)
    made = jax.jit(lambda c: system.sample(vars, {"content": c}, jax.random.key(0)))(content)
    np.testing.assert_array_equal(made["ids"], ids)
    # The first frame can be predicted from the content alone.
    shuffled = system.score(vars, {"content": np.roll(content, 1, axis=0), "ids": ids})
    assert np.min(shuffled) > 0.5


# -- pointed at something else --------------------------------------------------------------------


def config_of(codes_folder, **changes):
    config = load_config("lrs3_gpt:debug")
    config.system.codes = str(codes_folder)
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system.entries": 16}, r"comes from a BCD of another shape: .*\(2, 8, 8\).*\(2, 16, 8\)"),
        ({"system.books": 3}, r"comes from a BCD of another shape"),
        ({"system.post_linear": False}, r"comes from a BCD of another shape: .*out/kernel"),
        ({"system.content_tokens": 1}, r"content: float32\(8, 64, 8\), expected .*\(8, 1, 8\)"),
        ({"system.frames": 5}, r"frames=5, but the clips in .* have 4 codes at half rate"),
    ],
)
def test_codes_of_another_bcd_are_refused_before_anything_is_written(
    heads_codes, tmp_path, changes, message
):
    with pytest.raises(ConfigError, match=message) as caught:
        train(config_of(heads_codes, **changes), str(tmp_path / "gpt"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "gpt").exists()


def test_no_codes_are_one_sentence(tmp_path):
    with pytest.raises(
        DatasetError, match=r"none: holds no clips encoded by a trained BCD; write them with"
    ):
        train(config_of(tmp_path / "none"), str(tmp_path / "gpt"))
    assert not (tmp_path / "gpt").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(content_elements=3), r"content_elements=3: choose 1 or content_tokens=2"),
        (dict(frames=9), r"frames=9: with max_positions=8 it must be at most 8"),
        (dict(frames=1), r"frames=1 must be at least 2"),
        (dict(heads=3), r"width=16 must be divisible by heads=3"),
        (dict(compute="float16"), r"choose float32 or bfloat16"),
    ],
)
def test_fields_that_do_not_fit_are_named(folder, fields, message):
    with pytest.raises(ConfigError, match=message):
        build(folder, **fields)


# -- evaluation -----------------------------------------------------------------------------------


def test_only_the_run_that_wrote_the_codes_renders_them(
    heads_run, heads_codes, judge_workdir, tmp_path
):
    run = Run(
        config_of(heads_codes, **{"evals.motion_generation.bcd": str(judge_workdir)}), str(tmp_path)
    )
    with pytest.raises(ConfigError, match="holds a sprites_judge, which cannot render motion"):
        evaluation.build("motion_generation", run).render(run, None)
    other = tmp_path / "other"
    other.mkdir()
    books = encoded.CodesSource.read_attached(heads_codes)
    books["codebooks"] = books["codebooks"] + 1e-3
    (other / encoded.QUANTIZER).write_bytes(safetensors.numpy.save(books))
    run = Run(config_of(other, **{"evals.motion_generation.bcd": str(heads_run)}), str(tmp_path))
    with pytest.raises(ConfigError, match=r"is not the run.*its codebooks differ"):
        evaluation.build("motion_generation", run).render(run, None)


def test_evaluation_scores_each_clip_once(heads_codes, tmp_path):
    """Four clips are scored in batches of eight rows; the padding rows do not count."""
    run = Run(config_of(heads_codes), str(tmp_path))
    rows = encoded.CodesSource(heads_codes, "eval", frames=2)
    truth = np.stack([rows[i]["ids"] for i in range(4)])

    class Oracle:
        """A system that knows the eval split and scores a clip by its first code."""

        def __init__(self, system):
            self.entries, self.frames, self.uniform_loss = system.entries, system.frames, 1.0

        def score(self, vars, batch):
            return batch["ids"][:, 0, 0].astype(jnp.float32)

        def sample(self, vars, batch, key, frames, temperature, top_k):
            return {"ids": jnp.resize(truth, (8, *truth.shape[1:]))}

    evaluator = evaluation.build("motion_generation", run)
    run.system = Oracle(run.system)
    results = {row.metric: row for row in evaluator.evaluate(run, None)}
    assert results["cross_entropy"].value == pytest.approx(truth[:, 0, 0].mean())
    assert results["perplexity"].value == pytest.approx(math.exp(truth[:, 0, 0].mean()))
    assert results["histogram_distance"].value == 0.0
    assert results["change_rate/generated"].value == results["change_rate/real"].value
    assert {row.n for row in results.values()} == {4}
