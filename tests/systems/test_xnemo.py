"""X-NeMo: what each loss and each stage trains, guidance without a reference, windows, a run of all four stages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import media, paths, plan, reenact
from vidmotion.animate import Faces
from vidmotion.convert import __main__ as convert
from vidmotion.convert import engine
from vidmotion.convert.read import write_safetensors
from vidmotion.data import heads
from vidmotion.errors import EXIT_DONE, EXIT_REFUSED, ConfigError
from vidmotion.evaluation.transfer import face_views
from vidmotion.open_run import load_config, open_run
from vidmotion.run import Run
from vidmotion.system import Vars, build, within
from vidmotion.systems import xnemo
from vidmotion.systems.xnemo import Gan, Guidance
from vidmotion.train import train

BATCH, SIZE = 2, 32


def made(argument="", **stage):
    """Builds the debug config's system, with changes to its stage."""
    config = load_config(f"xnemo:debug{argument}")
    config.system.stage.update(stage)
    return build(config.system)


def batch_of(system, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(
            rng.integers(0, 256, leaf.shape)
            if leaf.dtype == jnp.uint8
            else rng.normal(size=leaf.shape),
            leaf.dtype,
        )
        for name, leaf in system.input_spec(BATCH).items()
    }


@pytest.fixture(scope="module")
def system():
    return made()


@pytest.fixture(scope="module")
def vars(system):
    """Returns random parameters, so that no layer that starts at zero hides what passes it."""
    shapes = jax.eval_shape(system.init, jax.random.key(0), batch_of(system))
    mutable = quick_jit(system.init_mutable)()
    return Vars(random_like(shapes, scale=0.1), mutable, {})


@pytest.fixture(scope="module")
def model_side(system, vars):
    """Returns the values and gradients of L_ldm and L_gan, each alone, for the player ``model``, and the output."""
    batch = batch_of(system)

    def both(params):
        step = jnp.zeros((), jnp.int32)
        loss, out = system.loss(
            "model", vars._replace(params=params), batch, jax.random.key(1), step, None
        )
        ldm = out.metrics["ldm"]
        return jnp.stack([ldm, loss - ldm]), out

    def pulled(params):
        values, back, out = jax.vjp(both, params, has_aux=True)
        return values, [back(row)[0] for row in jnp.eye(2)], out

    return quick_jit(pulled)(vars.params)


def norm(tree):
    """Returns the Euclidean norm over all leaves."""
    leaves = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree))
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in leaves)))


def test_both_losses_reach_the_motion_encoder_and_neither_the_discriminator(model_side):
    _, (ldm, gan), _ = model_side
    for part in ("reference", "denoiser", "motion"):
        assert norm(ldm["model"][part]) > 0
    assert norm(gan["model"]["motion"]) > 0
    assert norm(gan["model"]["reference"]) == norm(gan["model"]["denoiser"]) == 0
    # Only f_mot has a gradient: the layers after it make tokens, which the GAN head does not see.
    assert norm(gan["model"]["motion"]["fusion"]) == 0 < norm(ldm["model"]["motion"]["fusion"])
    for grads in (ldm, gan):
        assert norm(grads["disc"]) == norm(grads["head"]) == 0


def test_the_head_learns_by_the_gradient_of_its_loss(system, vars, model_side):
    """The gradient that comes with `carry` is that of L_gan in the head's parameters, checked by finite differences."""
    _, _, out = model_side
    batch, key, step = batch_of(system), jax.random.key(1), jnp.zeros((), jnp.int32)

    def head(params):
        return system.loss("head", vars._replace(params=params), batch, key, step, out.carry)[0]

    value, grads = jax.value_and_grad(head)(vars.params)
    assert norm(grads["head"]["appearance"]) > 0 and norm(grads["head"]["generator"]) > 0
    assert norm(grads["model"]) == norm(grads["disc"]) == 0
    assert float(value) == pytest.approx(float(out.carry["value"]), rel=1e-5)

    @quick_jit
    def l_gan(params):
        return system.loss("model", vars._replace(params=params), batch, key, step, None)[1].carry[
            "value"
        ]

    way = random_like(vars.params["head"]["generator"], seed=5, scale=1.0)
    slope = sum(
        map(jnp.vdot, jax.tree.leaves(grads["head"]["generator"]), jax.tree.leaves(way))
    ) / norm(way)

    def moved(distance):
        generator = jax.tree.map(
            lambda x, d: x + distance * d / norm(way), vars.params["head"]["generator"], way
        )
        return l_gan({**vars.params, "head": {**vars.params["head"], "generator": generator}})

    finite = (float(moved(0.02)) - float(moved(-0.02))) / 0.04
    assert finite == pytest.approx(float(slope), rel=0.05, abs=1e-3)


def test_the_head_sets_in_by_steps(system, vars, monkeypatch):
    """At first only the diffusion loss trains the motion code; L_r comes before the discriminator's terms; and L_gan's
    gradient at the code is clipped to a length of its own. The UNets, which L_gan does not reach, are left out."""
    cls = type(system)
    monkeypatch.setattr(cls, "_predict", lambda self, vars, x, *rest: jnp.zeros_like(x))
    monkeypatch.setattr(cls, "_reference_features", lambda self, vars, pictures: ({}, None))
    monkeypatch.setattr(xnemo, "project_banks", lambda net, params, banks: {})
    steps = {"start": 100, "pull_start": 200, "adversarial_start": 300}
    timed = dataclasses.replace(system, gan=dataclasses.replace(system.gan, **steps, clip=1e-3))
    batch = batch_of(timed)
    starts = [0, *(step for seat in timed.players for step in (seat.start, *seat.switches))]
    assert sorted(set(starts)) == [0, 100, 200, 300]

    @functools.partial(quick_jit, static_argnums=(1, 2))
    def motion(params, step, clip):
        """Returns the gradient of L_gan in E_mot at `step`, and the metrics."""
        now = dataclasses.replace(timed, gan=dataclasses.replace(timed.gan, clip=clip))

        def l_gan(params):
            with within(step, step + 1):
                held = vars._replace(params=params)
                loss, out = now.loss("model", held, batch, jax.random.key(1), step, None)
            return loss - out.metrics["ldm"], out.metrics

        grads, seen = jax.grad(l_gan, has_aux=True)(params)
        return grads["model"]["motion"], seen

    seen, pulls = {}, {}
    for step in (0, 100, 200, 300):
        pull, metrics = motion(vars.params, step, 0.0)
        seen[step] = {name.removeprefix("gan/") for name in metrics if name.startswith("gan/")}
        pulls[step] = norm(pull)
    assert seen[0] == set() and seen[100] == seen[200] == {"reconstruction", "pull"}
    assert seen[300] == {"reconstruction", "pull", "adversarial", "matching"}
    assert pulls[0] == 0 and pulls[100] < 1e-6 and 1e3 * pulls[100] < min(pulls[200], pulls[300])
    free, metrics = motion(vars.params, 300, 0.0)
    short, _ = motion(vars.params, 300, 1e-3)
    share = 1e-3 / float(metrics["gan/pull"])
    assert share < 0.5  # otherwise the clipping would hardly be tested
    assert norm(short) == pytest.approx(share * norm(free), rel=2e-2)
    with pytest.raises(ConfigError, match="start must be the first"):
        dataclasses.replace(system.gan, start=5)


def test_what_both_networks_have_starts_the_same(system):
    """Queries of one network meet keys of the other, so both must start alike, as they do from Stable Diffusion."""
    params = quick_jit(system.init)(jax.random.key(4), batch_of(system))["model"]
    reference, denoiser = paths.flatten(params["reference"]), paths.flatten(params["denoiser"])
    shared = reference.keys() & denoiser.keys()
    assert len(shared) > 50 and "mid/attn_0/self/q/kernel" in shared
    for path in shared:
        np.testing.assert_array_equal(reference[path], denoiser[path], err_msg=path)


def test_the_encoder_has_a_gradient_at_the_first_step_where_modules_are_open(system):
    """With the paper's start of zero it has none. The denoiser's last layer, which starts at zero, is made non-zero."""
    for opened in (False, True):
        sizes = {"module_groups": 8, "motion_opened": opened}
        one = dataclasses.replace(system, modules=sizes, gan=Gan(enabled=False))
        batch = batch_of(one)
        params = quick_jit(one.init)(jax.random.key(0), batch)
        params["model"]["denoiser"]["conv_out"]["kernel"] += 0.1
        vars = Vars(params, quick_jit(one.init_mutable)(), {})

        @quick_jit
        def pull(params, one=one, batch=batch, vars=vars):
            held = vars._replace(params=params)
            return jax.grad(
                lambda p: one.loss(
                    "model", held._replace(params=p), batch, jax.random.key(1), 0, None
                )[0]
            )(params)

        found = norm(pull(params)["model"]["motion"])
        assert found > 1e-4 if opened else found == 0


def test_the_demo_leaves_out_what_is_always_zero_and_averages_few_channels_nowhere():
    """No cross-attention without CLIP; at least four channels per group; averaged weights; a learning rate that falls;
    noise that hides the picture in most draws; a warm-up that ends well before the run."""
    for stage in (1, 2, 3, 4):
        config = load_config(f"xnemo:demo,stage={stage}")
        unet, model = config.system.unet, config.optimizer.model
        assert config.system.clip.network == "none" and unet.context_width == 0
        assert min(unet.channels) / unet.norm_groups >= 4
        assert min(unet.channels) / config.system.modules.module_groups >= 4
        assert config.ema.decay > 0 and model.schedule.kind == "cosine"
        assert model.schedule.warmup <= config.steps / 4
        alpha_bar = build(config.system).diffusion.alpha_bar()
        assert np.mean(alpha_bar < 1e-3) > 0.5
    leaves = {"a": {"kernel": 0, "bias": 0}, "norm": {"scale": 0}}
    decay = paths.flatten(paths.assign(load_config("xnemo").optimizer.model.decay, leaves))
    assert decay == {"a/kernel": True, "a/bias": False, "norm/scale": False}


def test_the_discriminator_learns_alone(system, vars, model_side):
    _, _, out = model_side
    batch = batch_of(system)

    def loss(params):
        return system.loss(
            "disc", vars._replace(params=params), batch, jax.random.key(1), 0, out.carry
        )

    grads, after = quick_jit(jax.grad(lambda p: loss(p)[0])), quick_jit(loss)
    grads, (_, seen) = grads(vars.params), after(vars.params)
    assert norm(grads["disc"]) > 0
    assert norm(grads["model"]) == norm(grads["head"]) == 0
    before, now = (paths.flatten(m["disc"]) for m in (vars.mutable, seen.mutable))
    assert any(np.any(np.asarray(before[name]) != np.asarray(now[name])) for name in before)


def test_statistics_move_where_the_encoder_learns(system, vars, model_side):
    before, after = vars.mutable, model_side[2].mutable
    for name in ("motion", "appearance"):
        assert any(
            np.any(np.asarray(a) != np.asarray(b))
            for a, b in zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]))
        )
    jax.tree.map(np.testing.assert_array_equal, before["disc"], after["disc"])


# -- stages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "learns"),
    [
        ("stage=1", "reference denoiser"),
        ("stage=2", "reference denoiser cross motion fusion head disc"),
        ("stage=3", "temporal"),
        ("stage=4", "reference denoiser cross temporal motion fusion head disc"),
        ("stage=1,joint=off", "reference denoiser motion head disc"),
        ("stage=2,joint=off", "reference denoiser cross fusion"),
        ("stage=4,joint=off", "reference denoiser cross temporal fusion"),
        ("stage=2,gan_head=off", "reference denoiser cross motion fusion"),
    ],
)
def test_a_stage_trains_what_it_says(argument, learns):
    """Checks names of the full network, whose last reference transformer has twenty leaves that are never read."""
    found = set()
    config = load_config(f"xnemo:{argument}")
    rules = config.optimizer.model.trainable
    examples = {
        "reference": ["reference/conv_in/kernel", "reference/up_3/attn_2/self_/x/kernel"],
        "unread": ["reference/up_3/attn_2/self/q/kernel", "reference/up_3/attn_2/ff/in/bias"],
        "denoiser": ["denoiser/conv_in/kernel", "denoiser/up_3/attn_2/self/q/kernel"],
        "cross": ["denoiser/mid/motion_0/proj_in/kernel", "denoiser/down_3/motion_1/norm/scale"],
        "temporal": ["denoiser/mid/temporal_0/ff/in/kernel", "denoiser/up_0/temporal_2/norm/bias"],
        "motion": ["motion/stem/kernel", "motion/motion/kernel", "motion/attention_3/norm/scale"],
        "fusion": ["motion/fusion/kernel", "motion/box_in/bias", "motion/box_out/kernel"],
    }
    for name, leaves in examples.items():
        tree = paths.unflatten(dict.fromkeys(leaves, 0))
        (value,) = set(paths.flatten(paths.assign(rules, tree)).values())
        found |= {name} if value else set()
    for player in ("head", "disc"):
        section = config.optimizer.get(player)
        if section and paths.assign(section.trainable, {"x": 0})["x"]:
            found.add(player)
    assert found == set(learns.split())


def test_the_first_stage_runs_without_motion(vars):
    """The loss and the sample of stage 1 do not depend on motion or temporal modules, nor on E_mot."""
    system = made(",stage=1")
    assert set(system.input_spec(1)) == {"reference", "target"}
    changed = paths.unflatten(
        {
            path: leaf + 1.0 if "/motion" in path or "temporal_" in path else leaf
            for path, leaf in paths.flatten(vars.params).items()
        }
    )
    batch, step = batch_of(system), jnp.zeros((), jnp.int32)
    loss = quick_jit(
        lambda p: system.loss(
            "model", vars._replace(params=p), batch, jax.random.key(0), step, None
        )[0]
    )
    assert float(loss(vars.params)) == float(loss(changed))
    assert system.loss("disc", vars, batch, jax.random.key(0), step, {})[0] == 0


# -- reference and guidance -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(3)
    return {
        "content": jnp.asarray(rng.integers(0, 256, (1, 1, SIZE, SIZE, 3)), jnp.uint8),
        "motion": jnp.asarray(rng.integers(0, 256, (1, 3, SIZE, SIZE, 3)), jnp.uint8),
    }


def test_a_dropped_sample_sees_neither_reference_nor_clip(system, vars, monkeypatch):
    """The config sets the share of dropped samples, which see what the negative branch sees."""
    seen = {}
    system = dataclasses.replace(system, guidance=Guidance(drop=0.25))
    rows = 400
    one = batch_of(system)
    batch = {name: jnp.repeat(leaf[:1], rows, axis=0) for name, leaf in one.items()}

    def spy(self, vars, x, time, context, tokens, pairs, reads):
        seen.update(context=context, reads=reads, tokens=tokens)
        return jnp.zeros_like(x)

    def features(self, vars, pictures):
        numbered = jnp.tile(jnp.arange(10.0)[None, :, None], (len(pictures), 1, SIZE))
        banks = {"mid/attn_0": numbered}
        return banks, jnp.ones((len(pictures), 1, 4))

    def project(net, params, banks):
        seen.update(banks)
        return {name: (bank, bank) for name, bank in banks.items()}

    def encode(self, vars, crops, key):
        return jnp.ones((*crops.shape[:2], self.encoder.latent)), vars.mutable

    cls = type(system)
    monkeypatch.setattr(cls, "_predict", spy)
    monkeypatch.setattr(xnemo, "project_banks", project)
    monkeypatch.setattr(cls, "_reference_features", features)
    monkeypatch.setattr(cls, "_encode", encode)
    system = dataclasses.replace(
        system, stage=dataclasses.replace(system.stage, gan_frames=0, masking=0.3)
    )
    system.loss("model", vars, batch, jax.random.key(2), 0, None)
    kept = np.asarray(seen["context"][:, 0, 0])
    assert set(kept) == {0.0, 1.0}
    assert 1 - kept.mean() == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / rows) ** 0.5)
    np.testing.assert_array_equal(seen["reads"], kept)
    # floor(10 * 0.7) of ten tokens, drawn anew for every sample.
    places = np.asarray(seen["mid/attn_0"])[..., 0].astype(int)
    assert places.shape == (rows, 7)
    np.testing.assert_allclose(np.bincount(places.ravel()) / rows, 0.7, atol=0.12)
    assert seen["tokens"] is not None  # motion is not dropped


def test_the_negative_branch_is_the_network_without_reference(system, vars, pictures):
    """At scale 0 only the negative branch is left: no bank, zeros for CLIP, the portrait's own motion."""
    run = quick_jit(
        lambda scale_vars, p: system.sample(scale_vars, p, jax.random.key(0), 2, 0.0)["video"]
    )
    first = run(vars, pictures)
    other = {**pictures, "motion": 255 - pictures["motion"]}
    np.testing.assert_allclose(first, run(vars, other), atol=1e-5)  # the driver has no effect
    # Nor has the reference network: only the start and the portrait's own vector depend on the portrait.
    params = {
        **vars.params["model"],
        "reference": random_like(vars.params["model"]["reference"], 9),
    }
    changed = vars._replace(params={**vars.params, "model": params})
    np.testing.assert_allclose(first, run(changed, pictures), atol=1e-5)


def test_a_masked_out_bank_is_no_bank(system, vars):
    """A dropped sample in training and a missing bank in sampling give the same noise prediction."""
    from vidmotion.models.unet import project_banks

    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 1, 8, 8, 48)), jnp.float32)
    tokens = jnp.asarray(rng.normal(size=(1, 1, 2, 16)), jnp.float32)
    picture = jnp.asarray(rng.integers(0, 256, (1, SIZE, SIZE, 3)), jnp.uint8)

    @quick_jit
    def both(vars):
        banks, context = system._reference_features(vars, picture)
        pairs = project_banks(system._denoiser, vars.params["model"]["denoiser"], banks)
        common = vars, x, jnp.full(1, 500), context, tokens
        return (
            system._predict(*common, pairs, jnp.zeros(1, bool)),
            system._predict(*common),
            system._predict(*common, pairs),
        )

    masked, none, seen = both(vars)
    effect = np.abs(np.asarray(seen - none)).max()
    assert effect > 1e-4
    np.testing.assert_allclose(masked, none, atol=0.02 * effect)


def test_a_sample_of_any_length(system, vars):
    """Samples in windows of two frames that overlap by one, with a portrait that is not a frame of the driver."""
    rng = np.random.default_rng(1)
    clips = {
        name: jnp.asarray(rng.integers(0, 256, (2, frames, SIZE, SIZE, 3)), jnp.uint8)
        for name, frames in (("content", 2), ("motion", 5))
    }
    system = dataclasses.replace(system, stage=dataclasses.replace(system.stage, skip=(), frames=2))
    made = quick_jit(lambda v, b: system.sample(v, b, jax.random.key(0), steps=2))(vars, clips)
    assert made["video"].shape == (2, 5, SIZE, SIZE, 3)
    assert made["code"].shape == (2, 5, system.encoder.latent)
    assert np.isfinite(np.asarray(made["video"])).all()
    assert made["video"].min() >= 0 and made["video"].max() <= 1


def test_crops_of_faces_are_those_of_the_training_pairs():
    """`face_views` of a clip against itself equals what `data.portraits` makes of the clip."""
    from vidmotion.data.portraits import head_portraits

    clips = {"size": 64, "frames": 4, "clips": 2, "split": "eval"}
    source = heads.HeadsSource(**clips)
    pair = head_portraits(pair={"frames": 3, "augment": {"size": 32}, "gap": 0.0}, **clips)[1]
    video, boxes = source.video(1), source.boxes(1)
    views = face_views(32, video, boxes, video[1:], boxes[1:])
    for name in ("driving", "reference_face", "f_rts"):
        np.testing.assert_array_equal(views[name], pair[name])


# -- configs and files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": {"skip": ("time",)}}, "choose motion, temporal"),
        ({"stage": {"frames": 40}}, "1 to 32"),
        ({"stage": {"frames": 1, "gan_frames": 2}}, "gan_frames at most frames"),
        ({"clip": {"network": "vit_l14"}}, "gives 768 numbers"),
        ({"sampler": {"preset": "best"}}, "choose released, paper, literal"),
        ({"sampler": {"window": 4, "overlap": 4}}, "less than window=4"),
        ({"motion": {"widht": 3}}, "config.system.motion: .*widht"),
        ({"gan": {"terms": {"l1": 1.0}}}, "gan.terms: .*l1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    section = {**load_config("xnemo:debug").system.to_dict(), **change}
    with pytest.raises(ConfigError, match=message):
        build(section)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_the_plan_counts_what_the_release_has(stage):
    run = Run(load_config(f"xnemo:stage={stage}"), "", abstract=True)
    text = "\n".join(plan._parameters(run))
    for number in (859_508_800, 1_684_818_244, 61_665_393, 97_742_847, 303_966_208):
        assert f"{number:,}" in text
    if stage == 3:
        all_, frozen = (
            int(line.split()[-1].replace(",", ""))
            for line in text.splitlines()
            if line.startswith(("all ", "of these frozen"))
        )
        assert all_ - frozen == 453_209_280  # the temporal modules


@pytest.mark.slow
@pytest.mark.timeout(1800)  # four programs are compiled
def test_four_stages_and_a_video(tmp_path, unoptimised, one_device):
    """Each stage begins with the previous stage's parameters and statistics, and leaves the rest unchanged."""
    before, workdir = None, None
    for stage in (1, 2, 3, 4):
        config = load_config(f"xnemo:debug,stage={stage}")
        config.batch_size = 1
        config.evals, config.init_from = {}, str(workdir or "")
        config.sample.rows = 0
        # A single resolution with transformers only in its middle has modules of each kind and little to compile.
        config.system.unet.update({"channels": (32,), "attention": (False,)})
        config.optimizer.model.clip, config.ema.decay = ((".*", 0.0),), 0.0
        workdir = tmp_path / str(stage)
        assert train(config, str(workdir)) == EXIT_DONE
        run = open_run(str(workdir))
        vars = run.trained_vars()
        if stage == 3:
            old, new = paths.flatten(before.params), paths.flatten(vars.params)
            for path, leaf in new.items():
                same = np.array_equal(np.asarray(leaf), np.asarray(old[path]))
                assert same == ("/temporal_" not in path) or not np.any(np.asarray(old[path]))
            jax.tree.map(np.testing.assert_array_equal, before.mutable, vars.mutable)
        before = vars
    source = heads.HeadsSource(32, 5, 2, split="eval")
    media.write_png(tmp_path / "a.png", source.video(0)[0])
    media.write_mp4(tmp_path / "b.mp4", source.video(1), fps=10)
    out = tmp_path / "c.mp4"
    where = Faces("8,8,24,24", "whole", "first")
    arguments = (run, str(tmp_path / "a.png"), str(tmp_path / "b.mp4"), str(out))
    assert reenact.reenact(*arguments, side_by_side=True, where=where) == 5
    assert media.read_video(out).frames.shape == (5, 32, 96, 3)


# -- released files -------------------------------------------------------------------------------


# The UNets of the debug config; their files reveal all sizes except the number of heads.
TINY = {
    "channels": (32, 32),
    "attention": (False, True),
    "layers_per_block": 1,
    "context_width": 4,
    "heads": 8,
}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Writes the published files in tiny sizes, without E_mot; returns (folder, parameters)."""
    folder = tmp_path_factory.mktemp("release")
    rng = np.random.default_rng(0)
    params = {}
    for part, name in (("reference", "xnemo_reference_unet"), ("denoiser", "xnemo_denoising_unet")):
        network = convert.NETWORKS[name]
        shapes = network.shapes({**TINY, "head": part == "denoiser"})
        params[part] = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f4"), shapes)
    files = {part: engine.export(params[part], convert.unet_maps.RULES) for part in params}
    files["temporal"] = {
        key.replace("temporal_modules", "motion_modules"): x
        for key, x in files["denoiser"].items()
        if "temporal_modules" in key
    }
    files["denoiser"] = {k: x for k, x in files["denoiser"].items() if "temporal_modules" not in k}
    for part, stem in convert.xnemo_maps.FILES.items():
        if part in files:
            write_safetensors(folder / f"{stem}.safetensors", files[part])
    return folder, params


def test_the_files_are_assembled_and_all_that_is_wrong_is_said(release, tmp_path, monkeypatch):
    folder, params = release
    with pytest.raises(ValueError, match=r"lacks xnemo_motion_encoder\.pth"):
        convert.bring_in_xnemo(folder, tmp_path / "out", {})
    # A motion encoder of one layer: the conversion of the whole one has its own test.
    network = dataclasses.replace(
        convert.NETWORKS["xnemo_motion_encoder"],
        arguments=lambda shapes, options: {"latent": 512},
        shapes=lambda arguments: {"params": {"stem": {"kernel": jnp.zeros((7, 7, 3, 4))}}},
    )
    monkeypatch.setitem(convert.NETWORKS, "xnemo_motion_encoder", network)
    stem = np.random.default_rng(1).normal(size=(4, 3, 7, 7)).astype("f4")
    encoder = folder / "xnemo_motion_encoder.safetensors"
    write_safetensors(encoder, {"module.model.conv1.weight": stem, "module.model.fc.oops": stem})
    try:
        with pytest.raises(engine.ConversionError, match=r"xnemo_motion_encoder: source .*oops"):
            convert.bring_in_xnemo(folder, tmp_path / "out", {})
        assert not (tmp_path / "out").exists()
        write_safetensors(encoder, {"module.model.conv1.weight": stem})
        assert "0 missing" in convert.bring_in_xnemo(folder, tmp_path / "out", {})
    finally:
        encoder.unlink()
    name, arguments, loaded = convert.folder.load(tmp_path / "out")
    assert name == "xnemo" and arguments["denoiser"]["channels"] == [32, 32]
    for part in ("reference", "denoiser"):
        jax.tree.map(np.testing.assert_array_equal, dict(loaded[part]), dict(params[part]))
    kernel = loaded["motion"]["params"]["stem"]["kernel"]
    np.testing.assert_array_equal(kernel, stem.transpose(2, 3, 1, 0))


def test_a_missing_temporal_part_is_named(release):
    folder, _ = release
    read = convert.read(folder / "xnemo_denoising_unet.safetensors")
    shapes = convert.NETWORKS["xnemo_denoising_unet"].shapes(TINY)
    with pytest.raises(engine.ConversionError) as caught:
        source = convert.xnemo_maps.denoising({}, read, {})
        engine.convert(shapes, source, convert.unet_maps.RULES)
    assert all("temporal_" in problem for problem in caught.value.problems)


def test_the_first_stage_begins_with_stable_diffusion(release, tmp_path, system):
    """The ``init_rules`` of stage 1 ask for exactly what the UNet's file gives, and for no new parameter."""
    folder, params = release
    whole = convert.read(folder / "xnemo_denoising_unet.safetensors")
    base = {key: x for key, x in whole.items() if "_modules" not in key}
    write_safetensors(tmp_path / "unet.safetensors", base)
    with pytest.raises(ValueError, match="or --base"):
        convert.bring_in_xnemo(None, tmp_path / "out", {})
    convert.bring_in_xnemo(None, tmp_path / "out", {"base": tmp_path / "unet.safetensors"})
    given = system.released(convert.folder.load(tmp_path / "out")[2])
    np.testing.assert_array_equal(
        given["model"]["reference"]["conv_in"]["kernel"], params["denoiser"]["conv_in"]["kernel"]
    )
    rules = load_config("xnemo:debug,stage=1").init_rules
    fresh = jax.eval_shape(system.init, jax.random.key(0), batch_of(system))
    asked = {path for path, flag in paths.flatten(paths.assign(rules, fresh)).items() if flag}
    assert asked == set(paths.flatten(given))


def test_a_base_without_text_attention_is_refused_by_all_that_it_lacks(release, tmp_path, capsys):
    folder, _ = release
    whole = convert.read(folder / "xnemo_denoising_unet.safetensors")
    text = [k for k in whole if ".attn2." in k or ".transformer_blocks.0.norm2." in k]
    base = {key: x for key, x in whole.items() if "_modules" not in key and key not in text}
    write_safetensors(tmp_path / "unet.safetensors", base)
    given = ["xnemo", f"--base={tmp_path / 'unet.safetensors'}", f"--out={tmp_path / 'out'}"]
    assert convert.main(given) == EXIT_REFUSED
    said = capsys.readouterr().err
    lacking = [key for key in text if "_modules" not in key]
    assert len(lacking) == 7 * 4 and all(f"no source {key}" in said for key in lacking)
    assert not (tmp_path / "out").exists()
