"""WarpFace as a whole: gradients of each part, pairs, guidance, sizes, the swap (spec warpface.md, section 14)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from configs.sweeps import warpface_tables
from vidmotion import paths
from vidmotion.data.portraits import head_portraits
from vidmotion.errors import ConfigError
from vidmotion.losses.motion import symmetry_loss
from vidmotion.open_run import load_config
from vidmotion.system import Vars, build
from vidmotion.systems.warpface import Guidance, WarpFace

BATCH = 2


def made(argument="", **changes):
    """Builds the debug config's system; a dict changes fields of a section: ``motion={"kind": "ip"}``."""
    config = load_config(f"warpface:debug{argument}")
    for name, value in changes.items():
        if isinstance(value, dict):
            config.system[name].update(value)
        else:
            config.system[name] = value
    return build(config.system)


def batch_of(system, seed=0):
    rng = np.random.default_rng(seed)
    spec = system.input_spec(BATCH)
    return {n: jnp.asarray(rng.integers(0, 256, s.shape), jnp.uint8) for n, s in spec.items()}


def pictures_of(system, frames=3, seed=3):
    """Returns coarse squares of strong colours; of fine noise the motion encoder would see only the mean."""
    rng = np.random.default_rng(seed)

    def coarse(count):
        squares = 255 * rng.integers(0, 2, (1, count, 2, 2, 3))
        side = system.size // 2
        return jnp.asarray(squares.repeat(side, axis=2).repeat(side, axis=3), jnp.uint8)

    return {"content": coarse(1), "motion": coarse(frames)}


def random_vars(system):
    """Returns random parameters, so that no layer that starts at zero hides what passes it; those of the motion
    encoder are large, so that codes differ between pictures."""
    shapes = jax.eval_shape(system.init, jax.random.key(0), batch_of(system))
    params = random_like(shapes, scale=0.2)
    if "motion" in params["model"]:
        params["model"]["motion"] = random_like(shapes["model"]["motion"], scale=1.5)
    return Vars(params, {}, {})


def norm(tree):
    """Returns the Euclidean norm over all leaves."""
    leaves = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree))
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves)))


@pytest.fixture(scope="module")
def system():
    return made(guidance={"drop": 0.0}, loss_terms={"symmetry": 0.1, "detach": False})


@pytest.fixture(scope="module")
def vars(system):
    return random_vars(system)


@pytest.fixture(scope="module")
def learnt(system, vars):
    """Returns the values of the diffusion and symmetry terms, the gradients of each alone, and the metrics."""
    batch = batch_of(system)

    def both(params):
        loss, out = system.loss(
            "model", vars._replace(params=params), batch, jax.random.key(1), 0, None
        )
        return jnp.stack([out.metrics["ldm"], loss - out.metrics["ldm"]]), out.metrics

    def pulled(params):
        values, back, metrics = jax.vjp(both, params, has_aux=True)
        return values, [back(row)[0]["model"] for row in jnp.eye(2)], metrics

    return quick_jit(pulled)(vars.params)


# -- gradients ------------------------------------------------------------------------------------


def test_the_diffusion_term_teaches_all_but_the_reverse_head(learnt):
    _, (ldm, _), _ = learnt
    for part in ("reference", "denoiser"):
        assert norm(ldm[part]) > 0
    for part in ("codebook", "forward_head", "blocks_0", "embed", "readout"):
        assert norm(ldm["motion"][part]) > 0, part
    assert norm(ldm["motion"]["reverse_head"]) == 0  # Eq. 4 does not contain theta_{s->r}
    moved = [p for p in paths.flatten(ldm["denoiser"]) if "flow_" in p or "occlusion_" in p]
    assert moved and all(norm(paths.flatten(ldm["denoiser"])[p]) > 0 for p in moved)


def test_the_symmetry_term_teaches_the_motion_encoder_alone(learnt, system, vars):
    values, (_, symmetry), metrics = learnt
    assert norm(symmetry["reference"]) == norm(symmetry["denoiser"]) == 0
    assert norm(symmetry["motion"]["reverse_head"]) > 0
    assert norm(symmetry["motion"]["forward_head"]) > 0
    codes = system.codes(vars, batch_of(system)["reference_driving"])  # from the source alone
    want = np.mean((codes.to_canonical_bm + codes.from_canonical_bm) ** 2)
    assert float(metrics["symmetry"]) == pytest.approx(float(want), rel=1e-4)
    assert float(values[1]) == pytest.approx(0.1 * float(want), rel=1e-3)


def test_a_detached_symmetry_term_leaves_the_forward_code_alone(vars):
    system = made(loss_terms={"detach": True}, guidance={"drop": 0.0})
    batch = batch_of(system)

    @quick_jit
    def gradient(params):
        def term(params):
            run = system.loss(
                "model", vars._replace(params=params), batch, jax.random.key(1), 0, None
            )
            return run[0] - run[1].metrics["ldm"]

        return jax.grad(term)(params)["model"]["motion"]

    found = gradient(vars.params)
    assert norm(found["forward_head"]) == norm(found["codebook"]) == 0
    assert norm(found["reverse_head"]) > 0


def test_what_both_networks_have_starts_the_same(system):
    params = quick_jit(system.init)(jax.random.key(3), batch_of(system))["model"]
    denoiser = paths.flatten(params["denoiser"])
    for path, leaf in paths.flatten(params["reference"]).items():
        np.testing.assert_array_equal(leaf, denoiser[path], err_msg=path)


def test_symmetry_on_both_frames_is_the_mean_of_the_two(vars):
    system = made(loss_terms={"symmetry_on": "both"}, guidance={"drop": 0.0})
    batch = batch_of(system)
    run = quick_jit(lambda v: system.loss("model", v, batch, jax.random.key(1), 0, None)[1].metrics)
    seen = [
        system.codes(vars, batch["reference_driving"]),
        system.codes(vars, batch["driving"][:, 0]),
    ]
    want = np.mean([np.mean(symmetry_loss(c.to_canonical_bm, c.from_canonical_bm)) for c in seen])
    assert float(run(vars)["symmetry"]) == pytest.approx(float(want), rel=1e-4)


def test_transfer_by_sum_teaches_the_reverse_head_by_diffusion(vars):
    system = made(motion={"transfer": "sum"}, guidance={"drop": 0.0})
    batch = batch_of(system)

    def ldm(params):
        out = system.loss("model", vars._replace(params=params), batch, jax.random.key(1), 0, None)
        return out[1].metrics["ldm"]

    gradient = quick_jit(jax.grad(ldm))(vars.params)["model"]
    assert norm(gradient["motion"]["reverse_head"]) > 0


def test_a_codebook_of_deficient_rank_shows_as_gradients_that_are_not_finite(system, vars):
    """As documented, training does not stall silently: the gradients are not finite, and it ends with exit code 3."""
    params = jax.tree.map(lambda x: x, vars.params)
    params["model"]["motion"]["codebook"] *= 0.0
    gradient = jax.grad(
        lambda c: jnp.sum(
            system.basis(
                vars._replace(
                    params={"model": {"motion": {**params["model"]["motion"], "codebook": c}}}
                )
            )
        )
    )(params["model"]["motion"]["codebook"])
    assert not np.isfinite(np.asarray(gradient)).all()


def test_the_codebook_is_orthonormal_after_every_step(system, vars):
    batch = batch_of(system)

    @quick_jit
    def step(params, key):
        grads = jax.grad(
            lambda p: system.loss("model", vars._replace(params=p), batch, key, 0, None)[0]
        )(params)
        return jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g), params, grads)

    params = vars.params
    for i in range(3):
        before = params["model"]["motion"]["codebook"]
        params = step(params, jax.random.key(i))
        assert float(jnp.abs(params["model"]["motion"]["codebook"] - before).max()) > 0
        q = np.asarray(system.basis(vars._replace(params=params)))
        for one in q:
            np.testing.assert_allclose(one.T @ one, np.eye(q.shape[-1]), atol=1e-5)


# -- pairs and dropout ----------------------------------------------------------------------------


def spied(monkeypatch, system, vars, batch):
    """Runs a training step; returns what the denoiser receives (latents, time, codes, who reads the
    reference), and the metrics."""
    seen = {}

    class Denoiser:
        def apply(self, params, x, time, context, theta, banks, reads, mutable):
            seen.update(x=x, time=time, theta=theta, reads=reads)
            return jnp.zeros_like(x), {}

    banks = {"mid/attn_0": (jnp.zeros((len(batch["reference"]), 5, 2)), None)}
    monkeypatch.setattr(WarpFace, "_denoiser", property(lambda self: Denoiser()))
    monkeypatch.setattr(WarpFace, "_banks", lambda *_: banks)
    _, out = system.loss("model", vars, batch, jax.random.key(2), 0, None)
    return seen, out.metrics


def test_reference_and_motion_are_dropped_together(monkeypatch, vars):
    system, rows = made(guidance={"drop": 0.25}), 400
    batch = {n: jnp.repeat(x[:1], rows, axis=0) for n, x in batch_of(system).items()}
    seen, _ = spied(monkeypatch, system, vars, batch)
    kept = np.asarray(seen["reads"])
    assert kept.shape == (rows,)
    assert 1 - kept.mean() == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / rows) ** 0.5)
    np.testing.assert_array_equal(np.abs(seen["theta"][:, 0]).max(axis=1) > 0, kept)


def test_a_pair_of_equal_frames_has_no_motion_and_weighs_tau(monkeypatch, vars):
    system = made(guidance={"drop": 0.0})
    batch = batch_of(system)
    batch |= {"target": batch["reference"][:, None], "driving": batch["reference_driving"][:, None]}
    seen, metrics = spied(monkeypatch, system, vars, batch)
    np.testing.assert_array_equal(seen["theta"], 0.0)
    assert float(metrics["ldm"]) == pytest.approx(0.5 * float(metrics["mse"]), rel=1e-6)


def test_the_target_is_drawn_from_the_posterior_and_all_else_is_its_mean(monkeypatch, vars):
    """Each of the four frames of a pair is encoded only once, too."""
    system, seen = made(), []
    codec = type(system.codec)
    encode = codec.encode

    def mean(self, consts, video, key=None):
        assert key is None
        seen.append(("mean", np.asarray(video)))
        return encode(self, consts, video)

    def draw(self, consts, video, key):
        seen.append(("drawn", np.asarray(video)))
        x = encode(self, consts, video)
        return x, x + 1.0

    monkeypatch.setattr(codec, "encode", mean)
    monkeypatch.setattr(codec, "encode_and_draw", draw)
    batch = batch_of(system)
    spied(monkeypatch, system, vars, batch)
    (drawn,) = [video for how, video in seen if how == "drawn"]
    np.testing.assert_array_equal(drawn, batch["target"])
    frames = np.concatenate([video.reshape(-1, *video.shape[2:]) for _, video in seen])
    want = np.concatenate([np.reshape(x, (-1, *frames.shape[1:])) for x in batch.values()])
    assert sorted(x.tobytes() for x in frames) == sorted(x.tobytes() for x in want)


def test_pairs_are_more_than_a_fifth_of_a_second_apart():
    pair = {"recipe": "pcavs", "gap": 0.2, "flip": 0.0}
    clips = {"size": 32, "clips": 2, "fps": 25.0, "pair": pair}
    source = head_portraits(frames=9, random=True, **clips)
    rng = np.random.default_rng(0)
    for _ in range(40):
        reference, start = source.transforms[0]._picked(9, 25.0, rng)
        assert abs(reference - start) >= 6  # a distance of 5 frames is exactly 0.2 s
    with pytest.raises(ConfigError, match=r"more than 0\.2 s away"):
        head_portraits(frames=6, random=True, **clips)
    head_portraits(frames=7, random=True, **clips)


# -- sampling -------------------------------------------------------------------------------------


def test_the_null_branch_lacks_what_it_says(system, vars):
    """At scale 0 only the null branch is left; it must ignore the condition that it lacks, and no other."""
    first = pictures_of(system)
    drive = {**first, "motion": 255 - first["motion"]}
    sample = {}
    for null in ("both", "appearance", "motion"):
        one = dataclasses.replace(system, guidance=Guidance(scale=0.0, null=null))
        run = quick_jit(lambda v, p, one=one: one.sample(v, p, jax.random.key(0))["video"])
        sample[null] = run
    other = vars._replace(
        params={
            "model": {
                **vars.params["model"],
                "reference": random_like(vars.params["model"]["reference"], 9, 0.2),
            }
        }
    )

    def change(null, vars_, inputs):
        return float(jnp.abs(sample[null](vars_, inputs) - sample[null](vars, first)).max())

    # Changes caused by another driver, and by another reference network.
    moved = {null: (change(null, vars, drive), change(null, other, first)) for null in sample}
    assert max(*moved["both"], moved["appearance"][1], moved["motion"][0]) < 1e-5, moved
    assert min(moved["appearance"][0], moved["motion"][1]) > 1e-4, moved


def test_guidance_of_one_is_the_conditional_branch(system, vars):
    """The shortcut at a weight of 1 equals the general formula at a weight that differs from 1 by rounding."""
    batch = pictures_of(system)

    def sample(scale):
        run = quick_jit(lambda v: system.sample(v, batch, jax.random.key(0), guidance=scale))
        return run(vars)["video"]

    np.testing.assert_allclose(sample(1.0), sample(1.0 + 1e-6), atol=1e-4)


def test_swapping_gives_each_frame_its_own_motion_on_one_noise(system, vars):
    batch = pictures_of(system, frames=3)
    batch["motion"] = batch["motion"].at[:, 2].set(batch["motion"][:, 0])
    out = quick_jit(lambda b: system.sample(vars, b, jax.random.key(0)))(batch)
    assert out["video"].shape == (1, 3, 32, 32, 3) and out["code"].shape == (1, 3, 16)
    video = np.asarray(out["video"])
    assert video.min() >= 0 and video.max() <= 1
    # Every frame uses the same noise.
    np.testing.assert_allclose(video[:, 0], video[:, 2], atol=1e-5)
    assert np.abs(video[:, 0] - video[:, 1]).max() > 1e-3
    read = system.read_codes(vars, batch)
    np.testing.assert_allclose(read["motion"], out["code"], atol=1e-5)


def primitives(jaxpr, name, inside=False):
    """Counts a primitive in a jaxpr: (number at the top, number within loops)."""
    found = np.zeros(2, int)
    for eqn in jaxpr.eqns:
        found[int(inside)] += eqn.primitive.name == name
        loop = inside or eqn.primitive.name in ("scan", "while")
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    found += primitives(part, name, loop)
    return found


def test_a_video_needs_one_orthogonalisation(system, vars):
    batch = pictures_of(system)
    traced = jax.make_jaxpr(lambda v: system.sample(v, batch, jax.random.key(0)))(vars)
    top, within = primitives(traced.jaxpr, "geqrf") + primitives(traced.jaxpr, "qr")
    assert (top, within) == (1, 0)


# -- sizes and ablations --------------------------------------------------------------------------


def shapes_of(config):
    """Returns the system of a config, and the shapes of its parameters."""
    system = build(config.system)
    batch = {n: jnp.zeros(s.shape, s.dtype) for n, s in system.input_spec(1).items()}
    return system, jax.eval_shape(system.init, jax.random.key(0), batch)["model"]


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_sizes_are_stable_diffusions_without_text():
    """Each UNet has 859,520,964 parameters minus the text attention's 43,987,520; a reference has no output layer."""
    config = load_config("warpface:msa=all")
    config.system.codec.network = "patch"  # needs no weights
    parts = shapes_of(config)[1]
    plain = {p: x for p, x in paths.flatten(parts["denoiser"]).items() if "/within/" not in p}
    assert count(plain) == 815_533_444
    assert count(parts["reference"]) == 815_533_444 - (2 * 320 + 320 * 4 * 9 + 4)
    blocks = {p: x for p, x in paths.flatten(parts["motion"]).items() if p.startswith("blocks_")}
    assert count(blocks) == 4_738_560
    config.system.reference = "down+mid"
    cut = shapes_of(config)[1]["reference"]
    assert cut and not any(name.startswith("up_") for name in cut)


@pytest.mark.parametrize("name", warpface_tables.ROWS)
def test_every_row_of_the_tables_initialises(name):
    argument = warpface_tables.ARGUMENTS[name]
    assert argument.split(",")[0] == "demo"
    system, parts = shapes_of(load_config(f"warpface:{argument}"))
    assert count(parts["denoiser"]) > 0
    assert ("motion" in parts) == (system.motion.kind != "none")


def test_rows_are_all_different_and_all_of_the_paper():
    sizes = [
        len([n for n in warpface_tables.ROWS if n.startswith(t)])
        for t in ("table 3", "table 4a", "table 4b", "table 4c", "table 5", "table 6", "figure 1")
    ]
    assert sizes == [4, 4, 4, 5, 9, 9, 1]  # all tables share the row of the full model
    systems = [
        load_config(f"warpface:{a}").system.to_json() for a in warpface_tables.ARGUMENTS.values()
    ]
    assert len(set(systems)) == len(systems)


@pytest.mark.parametrize(
    "argument", [",motion=ip", ",motion=none", ",inject=ca", ",motion=ip,inject=ca"]
)
def test_ablations_learn_and_sample(argument):
    system = made(argument)
    vars = random_vars(system)
    batch = batch_of(system)
    loss = quick_jit(
        jax.value_and_grad(
            lambda p: system.loss(
                "model", vars._replace(params=p), batch, jax.random.key(1), 0, None
            )[0]
        )
    )
    value, gradient = loss(vars.params)
    assert np.isfinite(float(value))
    assert all(norm(part) > 0 for part in gradient["model"].values())
    out = quick_jit(lambda b: system.sample(vars, b, jax.random.key(0)))(pictures_of(system))
    assert np.isfinite(np.asarray(out["video"])).all()


# -- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"motion": {"wide": ""}}, "motion.wide='': choose tight_frame, truncate"),
        ({"motion": {"size": 5}}, "token_width=8 does not divide the motion code of 10 numbers"),
        ({"reference": "middle"}, "reference='middle': choose none, down, up"),
        ({"guidance": {"null": "text"}}, "choose both, appearance, motion"),
        ({"inject": {"mode": "film"}}, "choose warpca, ca"),
        ({"motion": {"kind": "pose"}}, "choose vector, ip, none"),
        ({"loss_terms": {"symmetry_on": "target"}}, "choose source, both"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        made(**change)


@pytest.mark.parametrize(("wide", "count"), [("tight_frame", 16), ("truncate", 8)])
def test_more_vectors_than_dimensions_follow_the_rule_given(wide, count):
    system = made(motion={"groups": 1, "basis": 16, "size": 8, "wide": wide})
    vars = random_vars(system)
    codes = system.codes(vars, batch_of(system)["reference"])
    assert codes.alpha_bki.shape == (BATCH, 1, count)
    assert codes.from_canonical_bm.shape == (BATCH, 8)
    q = np.asarray(system.basis(vars))[0]
    np.testing.assert_allclose(q @ q.T, np.eye(8), atol=1e-5)


# -- all of it ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_clip_is_learnt():
    """After 300 steps on one clip the loss is lower, and a zero code rebuilds the source better than random codes."""
    import optax

    system = made(
        unet={"channels": (32, 32)},
        guidance={"drop": 0.1, "scale": 1.0},
        inject={"flow_start": 0.0},  # as in the paper, a code of zeros moves nothing at first
        steps=10,
    )
    source = head_portraits(size=32, frames=6, clips=1, fps=6.0, pair={"recipe": "pcavs"})
    video = jnp.asarray(source.clips[0]["video"])
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(system.init, jax.random.key(0), batch_of(system))
    params = jax.jit(system.init)(jax.random.key(0), batch_of(system))
    assert jax.tree.structure(shapes) == jax.tree.structure(params)
    rule = optax.adam(3e-3)

    @jax.jit
    def step(params, state, pairs, key):
        first, second = video[pairs[:, 0]], video[pairs[:, 1]]
        batch = {"reference": first, "reference_driving": first}
        batch |= {"target": second[:, None], "driving": second[:, None]}
        (_, out), grads = jax.value_and_grad(
            lambda p: system.loss("model", Vars(p, {}, {}), batch, key, 0, None), has_aux=True
        )(params)
        updates, state = rule.update(grads, state)
        return optax.apply_updates(params, updates), state, out.metrics["mse"]

    state, errors = rule.init(params), []
    for i in range(300):
        pairs = np.stack([rng.permutation(6)[:2] for _ in range(8)])
        params, state, error = step(params, state, pairs, jax.random.key(i))
        errors.append(float(error))
    assert np.mean(errors[-30:]) < 0.5 * np.mean(errors[:10])
    vars = Vars(params, {}, {})
    own = system.codes(vars, video).from_canonical_bm
    wild = 5.0 * jnp.std(own) * jax.random.normal(jax.random.key(1), (1, 4, own.shape[1]))
    theta = jnp.concatenate([jnp.zeros_like(wild[:, :1]), wild], axis=1)
    shown = system.render(vars, system.latents(vars, video[:1]), theta, jax.random.key(0))
    error = jnp.mean((shown[0] - video[0][None] / 255.0) ** 2, axis=(1, 2, 3))
    assert float(error[0]) < float(jnp.mean(error[1:]))
