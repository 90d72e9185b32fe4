"""From face crops to generated motion: codes of a stand-in X-NeMo, its tokenizer, GPT-2, videos, refusals."""

import dataclasses
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from vidmotion import animate, media, reenact, startup
from vidmotion import encode as command
from vidmotion import system as systems
from vidmotion.data import encoded, faces, heads
from vidmotion.data.encoded import MotionCodesSource, MotionTokensSource
from vidmotion.data.records import DatasetError, DatasetWriter
from vidmotion.encode import encode
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.evaluation.token_generation import _unigram, reader
from vidmotion.models.token_gpt import SIZES
from vidmotion.open_run import load_config, open_run
from vidmotion.run import Run
from vidmotion.train import evaluate_vars, train

SIZE, FRAMES, WIDTH = 16, 16, 8  # WIDTH: the numbers of a code, as in `xnemo_gpt:debug`
REAL = systems.SYSTEMS["xnemo"]


@dataclasses.dataclass(frozen=True)
class StandIn(systems.System, systems.MotionTransfer):
    """An X-NeMo with only what generation uses; a code is the means of eight strips of the crop, times a gain.

    A portrait is animated by drawing the code's strips over it, so that the picture shows the code.
    """

    size: int = SIZE

    window = content_frames = 1
    face_side = SIZE
    encoder = SimpleNamespace(frames=1)

    @property
    def codec(self):
        """A codec that returns pictures as they are."""
        return SimpleNamespace(decode=lambda consts, latent: latent)

    def input_spec(self, batch):
        """Returns the shape of ``video``, uint8."""
        return {"video": jax.ShapeDtypeStruct((batch, FRAMES, SIZE, SIZE, 3), jnp.uint8)}

    def init(self, key, batch):
        """Returns a single parameter, the gain."""
        return {"model": {"motion": {"gain": jnp.ones(())}}}

    def init_mutable(self):
        """Returns statistics in the place of an X-NeMo's."""
        return {"motion": {"mean": jnp.zeros(())}}

    def loss(self, player, vars, batch, key, step, carry):
        """Pulls the gain towards 2; nothing is learnt from clips."""
        return (vars.params["model"]["motion"]["gain"] - 2.0) ** 2, systems.Out({}, vars.mutable)

    def motion_of(self, vars, crops):
        """Returns codes (B, T, 8)."""
        x = crops.astype(jnp.float32) / 255
        strips = x.reshape(*x.shape[:2], WIDTH, SIZE // WIDTH, SIZE, 3).mean(axis=(3, 4, 5))
        return vars.params["model"]["motion"]["gain"] * strips

    def encoder_fingerprint(self, vars):
        """Returns the fingerprint of the gain."""
        return systems.fingerprint(vars.params["model"]["motion"])

    def animate(self, vars, portrait, vector_bfm, f_rts, still_b1m, key):
        """Draws the strips of the codes."""
        rows = jnp.repeat(vector_bfm, SIZE // WIDTH, axis=2)[..., None, None]
        return jnp.broadcast_to(jnp.clip(rows, 0, 1), (*rows.shape[:3], SIZE, 3))

    def look(self, vars, portrait):
        """Returns the portrait unchanged."""
        return portrait

    def move(self, *arguments):
        """Does the same as `animate`."""
        return self.animate(*arguments)


@pytest.fixture(scope="module")
def stand_in():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(systems.SYSTEMS, "xnemo", f"{__name__}:StandIn")
        yield


def trained_xnemo(workdir, seed=0):
    config = load_config("heads:debug")
    config.system = {"name": "xnemo"}
    config.seed = seed
    config.optimizer.model.clip = 0.0
    config.optimizer.model.rate = 0.1 + 0.1 * seed
    config.evals, config.sample.rows = {}, 0
    config.data.common.frames = FRAMES
    assert train(config, str(workdir)) == EXIT_DONE
    return workdir


@pytest.fixture(scope="module")
def folder(stand_in, tmp_path_factory):
    return tmp_path_factory.mktemp("xnemo_gpt")


@pytest.fixture(scope="module")
def xnemo(folder):
    return trained_xnemo(folder / "xnemo")


@pytest.fixture(scope="module")
def motion(xnemo, folder):
    out = folder / "motion"
    assert encode(open_run(str(xnemo)), str(out), batch=5, fps=25.0) == {"train": 16, "eval": 4}
    return out


def task(name, codes, **changes):
    config = load_config(f"xnemo_gpt:debug,task={name}")
    config.system.codes = str(codes)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def tokenizer(xnemo, motion, folder):
    workdir = folder / "tokenizer"
    config = task("tokenizer", motion, **{"evals.motion_tokens.xnemo": str(xnemo)})
    assert train(config, str(workdir)) == EXIT_DONE
    return workdir


@pytest.fixture(scope="module")
def tokens(tokenizer, folder):
    assert encode(open_run(str(tokenizer)), str(folder / "tokens")) == {"train": 16, "eval": 4}
    return folder / "tokens"


@pytest.fixture(scope="module")
def outpaint(xnemo, tokens, folder):
    config = task("outpaint", tokens, **{"evals.token_generation.xnemo": str(xnemo)})
    assert train(config, str(folder / "outpaint")) == EXIT_DONE
    return folder / "outpaint"


def results_of(workdir):
    rows = json.loads((workdir / "eval.json").read_text())["results"]
    return {row["metric"]: row["value"] for row in rows}


# -- codes ----------------------------------------------------------------------------------------


def test_a_record_is_the_code_of_its_face_crops(xnemo, motion):
    gain = float(open_run(str(xnemo)).trained_vars().params["model"]["motion"]["gain"])
    assert gain != 1.0
    clips = heads.HeadsSource(SIZE, FRAMES, 16, fps=25.0)
    source = MotionCodesSource(motion)
    every, told = [], []
    for i in range(16):
        boxes = faces.driving_boxes(clips.boxes(i), SIZE, SIZE)
        crops = [faces.crop(f, b, SIZE) for f, b in zip(clips.video(i), boxes)]
        want = (
            gain * np.float32(crops).reshape(FRAMES, WIDTH, 2, SIZE, 3).mean(axis=(2, 3, 4)) / 255
        )
        np.testing.assert_allclose(source[i]["motion"], want, atol=1e-5)
        every.append(want)
        smile = clips.motion(i)[:, heads.MOTION_COLUMN["smile"]].mean()
        told.append(0 if smile < -0.15 else 2 if smile > 0.15 else 1)
        assert source[i]["condition"] == told[-1]
    assert len(set(told)) == 3 and source.conditions == ("sad", "neutral", "happy")
    # Neither the padding of the last batch nor the eval split counts.
    found = encoded.MotionCodesSource.read_attached(motion)
    flat = np.concatenate(every)
    np.testing.assert_allclose(found["mean"], flat.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found["std"], flat.std(axis=0), rtol=1e-3)


# -- tokens ---------------------------------------------------------------------------------------


def test_the_tokenizer_measures_what_tokens_keep(tokenizer, motion):
    """Compares the tokenizer's own results with values computed from the run's parameters."""
    run = open_run(str(tokenizer))
    vars, system = run.trained_vars(), run.system
    statistics = encoded.MotionCodesSource.read_attached(motion)
    source = MotionCodesSource(motion, "eval", length=8)
    x = np.stack([source[i]["motion"] for i in range(4)])
    standard = (x - statistics["mean"]) / statistics["std"]
    made = quick_jit(system.rebuilt)(vars, {"motion": x})
    np.testing.assert_allclose(made.target_btc, standard, atol=1e-4)
    found = results_of(tokenizer)
    mse = float(np.mean((standard - np.asarray(made.reconstruction_btc)) ** 2))
    assert found["mse/reconstruction"] == pytest.approx(mse, rel=1e-3)
    assert found["mse/mean"] == pytest.approx(float(np.mean(standard**2)), rel=1e-3)
    assert found["explained"] == pytest.approx(1 - mse / np.mean(standard**2), abs=1e-3)
    used, counts = np.unique(np.asarray(made.ids_bu), return_counts=True)
    share = counts / counts.sum()
    assert found["usage"] == pytest.approx(len(used) / 8)
    assert found["usage_perplexity"] == pytest.approx(math.exp(-np.sum(share * np.log(share))))
    for suffix in ("png", "mp4", "gif"):
        assert (tokenizer / "samples" / f"rebuilt.{suffix}").stat().st_size > 0


def test_the_codebook_is_of_the_training_vectors_and_the_loss_of_its_terms(tokenizer):
    run = open_run(str(tokenizer))
    vars = run.trained_vars()
    book = vars.mutable["codebook"]["quantizer"]
    assert bool(book["started"]) and len(np.unique(np.asarray(book["entries"]), axis=0)) == 8
    batch = {"motion": np.random.default_rng(0).normal(size=(8, 8, WIDTH)).astype(np.float32)}

    def loss(params, key):
        given = vars._replace(params=params)
        return run.system.loss("model", given, batch, key, jnp.zeros((), int), ())

    grads, out = quick_jit(jax.grad(loss, has_aux=True))(vars.params, jax.random.key(0))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    value = loss(vars.params, jax.random.key(0))[0]
    terms = {name: float(x) for name, x in out.metrics.items()}
    want = terms["reconstruction"] + 0.5 * terms["velocity"] + 0.02 * terms["commitment"]
    assert float(value) == pytest.approx(want, rel=1e-5)
    after = out.mutable["codebook"]["quantizer"]["sums"]
    assert np.any(np.asarray(after) != np.asarray(book["sums"]))


def test_tokens_are_those_of_whole_clips(tokenizer, tokens, motion):
    run = open_run(str(tokenizer))
    codes, source = MotionCodesSource(motion, "eval"), MotionTokensSource(tokens, "eval")
    whole = np.stack([codes[i]["motion"] for i in range(4)])
    want = quick_jit(run.system.read)(run.trained_vars(), {"motion": whole})
    for i in range(4):
        assert source[i]["ids"].shape == (FRAMES // 4,)
        np.testing.assert_array_equal(source[i]["ids"], want[i])
        assert source[i]["condition"] == codes[i]["condition"]


# -- generation -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator(outpaint):
    run = open_run(str(outpaint))
    return run.system, run.trained_vars()


def test_new_tokens_are_decoded_after_the_given_ones(generator, tokenizer):
    """The motion returned is the end of what the given and the new tokens decode to together."""
    system, vars = generator
    ids = np.random.default_rng(0).integers(0, 8, (2, 3)).astype(np.int32)
    made = quick_jit(lambda key: system.sample(vars, {"ids": ids}, key, count=4))(jax.random.key(0))
    assert made["ids"].shape == (2, 4) and made["motion"].shape == (2, 16, WIDTH)
    run = open_run(str(tokenizer))
    variables = run.system.variables(run.trained_vars())
    joined = np.concatenate([ids, made["ids"]], axis=1)
    want = quick_jit(lambda x: run.system.net.apply(variables, x, method="decode"))(joined)
    np.testing.assert_allclose(made["motion"], want[:, 12:], atol=1e-5)
    again = quick_jit(system.tokenised)(vars, want)
    assert again.shape == (2, 7)


def test_perplexity_is_the_exponential_of_the_mean_cross_entropy(generator, outpaint, tokens):
    system, vars = generator
    source = MotionTokensSource(tokens, "eval", length=4)
    ids = np.stack([source[i]["ids"] for i in range(4)])
    logits = quick_jit(system.net.apply)({"params": vars.params["model"]}, ids[:, :-1])
    logits = np.asarray(logits, np.float64)
    rest = np.log(np.exp(logits).sum(axis=-1))
    nats = rest - np.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    found = results_of(outpaint)
    assert found["perplexity"] == pytest.approx(math.exp(nats.mean()), rel=1e-4)
    np.testing.assert_allclose(quick_jit(system.score)(vars, {"ids": ids}), nats.mean(1), rtol=1e-4)
    loss, _ = quick_jit(
        lambda key: dataclasses.replace(system, dropout=0.0, keep=1.0).loss(
            "model", vars, {"ids": ids}, key, 0, ()
        )
    )(jax.random.key(0))
    assert float(loss) == pytest.approx(nats.mean(), rel=1e-4)


def test_unigram_by_hand():
    train, held_out = np.array([[0, 0, 1]]), np.array([[0, 1, 2]])
    want = math.exp(-(math.log(3 / 6) + math.log(2 / 6) + math.log(1 / 6)) / 3)
    assert _unigram(train, held_out, 3) == pytest.approx(want)


def test_the_reader_of_emotions_finds_separate_ones():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    x = np.eye(3)[labels] @ rng.normal(size=(3, 5)) + 0.01 * rng.normal(size=(90, 5))
    np.testing.assert_array_equal(reader(x[:60], labels[:60], 3)(x[60:]), labels[60:])


def test_emotion_is_told_dropped_and_measured(tokens, folder):
    config = task("emotion", tokens)
    workdir = folder / "emotion"
    assert train(config, str(workdir)) == EXIT_DONE
    found = results_of(workdir)
    assert {"perplexity/no_emotion", "emotion/generated", "emotion/real"} <= found.keys()
    assert 0 <= found["emotion/generated"] <= 1
    run = open_run(str(workdir))
    vars = run.trained_vars()
    source = MotionTokensSource(tokens, "eval", length=4)
    batch = {"ids": np.stack([source[i]["ids"] for i in range(4)])}

    def loss(condition, drop):
        system = dataclasses.replace(run.system, dropout=0.0, keep=1.0, drop=drop)
        told = {**batch, "condition": np.full(4, condition, np.int32)}
        return float(system.loss("model", vars, told, jax.random.key(0), 0, ())[0])

    assert loss(0, 0.0) != loss(1, 0.0)
    assert loss(0, 1 - 1e-7) == loss(1, 1 - 1e-7) == loss(3, 0.0)


@pytest.mark.parametrize("name", ["tokenizer", "outpaint"])
def test_the_sizes_of_the_paper(name):
    """18,653,192 for the tokenizer, counted by hand; GPT2-small without its 50,257 words and 1,024 positions."""
    run = Run(load_config(f"xnemo_gpt:task={name}"), "", abstract=True)
    count = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_params))
    k3, k1 = 3 * 512 * 512 + 512, 512 * 512 + 512
    stacks, down = 2 * 3 * (k3 + k1), 2 * (4 * 512 * 512 + 512)
    ends = 3 * 512 * 8 + 8 + 3 * 8 * 512 + 512
    tokenizer = 2 * stacks + down + ends + 5 * k3
    gpt = 124_439_808 - (50_257 + 1024) * 768 + (4099 + 130) * 768
    assert count == {"tokenizer": tokenizer, "outpaint": gpt}[name]
    if name == "outpaint":
        net = run.system.net
        assert {key: getattr(net, key) for key in SIZES["xnemo"]} == SIZES["xnemo"]


# -- videos ---------------------------------------------------------------------------------------


def test_key_frames_lie_on_the_line():
    keys = np.float32([[0, 0], [1, 4], [3, 0]])
    want = [[0, 0], [0.25, 1], [0.5, 2], [0.75, 3], [1, 4], [1.5, 3], [2, 2], [2.5, 1], [3, 0]]
    np.testing.assert_allclose(animate.between(keys, 4), want)


@pytest.fixture(scope="module")
def files(folder):
    clips = heads.HeadsSource(SIZE, 9, 3, split="eval")
    for i in range(3):
        media.write_png(folder / f"{i}.png", clips.video(i)[0])
    media.write_mp4(folder / "b.mp4", clips.video(1), fps=10)
    return folder


def frames_of(path):
    return media.read_video(path).frames


WHOLE = animate.Faces("whole", "whole")


def test_interpolation_between_the_faces_of_several_people(xnemo, files):
    keys = tuple(str(files / f"{i}.png") for i in range(3))
    out = str(files / "keys.mp4")
    drive = animate.Drive(keys=keys, between=4)
    run, portrait = open_run(str(xnemo)), str(files / "0.png")
    assert reenact.reenact(run, portrait, "", out, where=WHOLE, drive=drive) == 9
    made = list(animate.animated(run, media.read_picture(portrait), portrait, "", WHOLE, 0, drive))
    lines = np.stack([frame[:, 0, 0] for _, frame in made]).astype(float)
    np.testing.assert_allclose(lines[2], (lines[0] + lines[4]) / 2, atol=1)
    assert np.abs(lines[0] - lines[4]).max() > 5


def test_a_video_goes_on_with_generated_motion(xnemo, files, outpaint):
    run, out = open_run(str(xnemo)), str(files / "more.mp4")
    drive = animate.Drive(outpaint=str(outpaint), more=6)
    arguments = (run, str(files / "0.png"), str(files / "b.mp4"), out)
    assert reenact.reenact(*arguments, side_by_side=True, where=WHOLE, drive=drive) == 15
    frames = frames_of(out)
    assert frames.shape == (15, SIZE, 3 * SIZE, 3)
    assert frames[8, :, SIZE : 2 * SIZE].std() > 10 and frames[9, :, SIZE : 2 * SIZE].std() < 5


def test_generated_codes_move_a_portrait(xnemo, files, outpaint):
    path = outpaint / "samples" / "generated-0.safetensors"
    codes, fps, _ = animate.read_codes(str(path))
    assert codes.shape == (4 * 4, WIDTH) and fps == 25.0
    run, out = open_run(str(xnemo)), str(files / "codes.mp4")
    drive = animate.Drive(codes=str(path))
    assert reenact.reenact(run, str(files / "0.png"), "", out, where=WHOLE, drive=drive) == 16
    assert media.probe(out).fps == 25.0


# -- what is refused ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(stand_in, folder):
    """Trains another X-NeMo."""
    return trained_xnemo(folder / "other", seed=1)


def one_sentence(error):
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tokenizer", {"system.network.channels": 6}, "codes of 8 numbers, .*channels=6"),
        ("tokenizer", {"system.frames": 6}, "frames=6 must be a positive multiple of 4"),
        ("tokenizer", {"system.frames": 32}, "length 32, but the clips in .* have length 16"),
        (
            "outpaint",
            {"system.tokenizer.entries": 16, "system.tokenizer.width": 4},
            "tokenizer of another shape .*: entries 8 instead of 16, width 8 instead of 4",
        ),
        ("outpaint", {"system.length": 1}, "length=1 must be from 2 to 34"),
        ("outpaint", {"system.sampler.top_k": 9}, "top_k=9 from 0 to the 8 entries"),
        (
            "outpaint",
            {"system.sampler.guidance": 2.0},
            "guidance=2.0 must be 1 if there are no conditions",
        ),
        (
            "emotion",
            {"system.conditions": 5},
            "conditions=5, but .* 3 emotions: sad, neutral, happy",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    name, changes, message, motion, tokens, tmp_path
):
    with pytest.raises(ConfigError, match=message) as error:
        codes = motion if name == "tokenizer" else tokens
        train(task(name, codes, **changes), str(tmp_path / "run"))
    one_sentence(error)
    assert not (tmp_path / "run").exists()


def test_what_is_not_there_is_named(motion, tokens, xnemo, tmp_path):
    for name, codes, message in (
        (
            "tokenizer",
            tmp_path / "gone",
            "gone: holds no clips encoded by a trained X-NeMo; write them with",
        ),
        (
            "outpaint",
            tmp_path / "gone",
            "gone: holds no clips encoded by a trained motion tokenizer",
        ),
        (
            "tokenizer",
            tokens,
            "holds ids, condition; expected clips that .* has encoded with a trained X-NeMo",
        ),
        ("outpaint", motion, "expected clips that .* has encoded with a trained motion tokenizer"),
    ):
        with pytest.raises(DatasetError, match=message) as error:
            train(task(name, codes), str(tmp_path / "run"))
        one_sentence(error)
    with DatasetWriter(tmp_path / "clips", "clips") as writer:
        writer.write("train", {"video": np.zeros((2, 4, 4, 3), np.uint8)})
    with pytest.raises(
        DatasetError, match=r"clips: expected clips that python -m vidmotion.encode has encoded"
    ):
        MotionCodesSource(tmp_path / "clips")
    assert not (tmp_path / "run").exists()


def test_codes_of_another_xnemo_are_refused(other, xnemo, tokenizer, outpaint, files, folder):
    """Codes of another X-NeMo may not be rendered, continued, or used for further training."""
    for workdir in (tokenizer, outpaint):
        run = open_run(str(workdir))
        for section in run.config.evals.values():
            section.xnemo = str(other)
        with pytest.raises(
            ConfigError, match=r"with another X-NeMo than .*, or with another check"
        ) as error:
            evaluate_vars(run, run.trained_vars())
        one_sentence(error)
    codes = str(outpaint / "samples" / "generated-0.safetensors")
    run, out = open_run(str(other)), str(files / "never.mp4")
    portrait, video = str(files / "0.png"), str(files / "b.mp4")
    for drive in (animate.Drive(outpaint=str(outpaint), more=4), animate.Drive(codes=codes)):
        with pytest.raises(
            ConfigError, match=r"with another X-NeMo than .*, or with another check"
        ) as error:
            reenact.reenact(run, portrait, video, out, where=WHOLE, drive=drive)
        one_sentence(error)
    theirs = folder / "other_motion"
    encode(open_run(str(other)), str(theirs), fps=25.0)
    with pytest.raises(ConfigError, match=r"other weights of the network '(standard|motion_enc)"):
        train(task("tokenizer", theirs, steps=4), str(tokenizer))
    assert not (files / "never.mp4").exists()


def test_drives_that_make_no_sense(xnemo, heads_run, tokenizer, files, tmp_path):
    run, portrait, video = open_run(str(xnemo)), str(files / "0.png"), str(files / "b.mp4")
    out = str(tmp_path / "out.mp4")
    for drive, message in (
        (dict(keys=("a.png",)), "at least two key frames"),
        (dict(outpaint="x"), "--outpaint=RUN and --more=FRAMES go together"),
        (dict(outpaint=str(tmp_path / "gone"), more=4), "gone holds no run"),
        (dict(outpaint=str(tokenizer), more=4), "holds a motion_tokenizer, not a generator"),
        (
            dict(codes=str(tmp_path / "gone")),
            "is not a file of motion codes, such as the evaluation of",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            reenact.reenact(run, portrait, video, out, where=WHOLE, drive=animate.Drive(**drive))
        one_sentence(error)
    with pytest.raises(ConfigError, match=r"--keys, --codes, --outpaint, .* holds a bcd"):
        keys = animate.Drive(keys=(portrait, portrait))
        reenact.reenact(open_run(str(heads_run)), portrait, "", out, drive=keys)


def test_refusals_of_the_commands(stand_in, motion, tokenizer, monkeypatch, caplog, tmp_path):
    for name in ("set_up_log", "set_up_devices"):
        monkeypatch.setattr(startup, name, lambda: None)
    monkeypatch.setattr(startup.logging.getLogger("vidmotion"), "propagate", True)
    for arguments, message in (
        ([f"--workdir={tmp_path / 'gone'}"], "gone holds no run"),
        ([f"--workdir={tokenizer}", "--frames=8"], "whole clips are turned into tokens"),
        ([f"--workdir={tokenizer}", "--fps=8"], "reads clips at their own rate"),
    ):
        caplog.clear()
        assert command.main([*arguments, f"--out={tmp_path / 'out'}"]) == 2
        said = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
        assert len(said) == 1 and message in said[0] and "\n" not in said[0]
    assert not (tmp_path / "out").exists()
