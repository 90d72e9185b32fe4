"""Protocols on stand-ins whose answers are known: figures, interruptions, parts of several hosts, refusals."""

import json
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from configs import _shared
from vidmotion.convert import folder
from vidmotion.convert.__main__ import NETWORKS
from vidmotion.data.clip_source import ClipSource, Renders
from vidmotion.data.records import DatasetWriter
from vidmotion.errors import ConfigError
from vidmotion.evaluation import (
    PROTOCOLS,
    build,
    evaluate,
    evaluators,
    feature_networks,
    measures,
    protocols,
)
from vidmotion.evaluation.feature_networks import FeatureNetwork
from vidmotion.evaluation.measures import Batch
from vidmotion.metrics import frechet
from vidmotion.models.features.iresnet import IResNet
from vidmotion.system import Vars

SIZE, FRAMES, COUNT = 16, 4, 11
CLIPS = np.random.default_rng(0).integers(0, 256, (COUNT, FRAMES, SIZE, SIZE, 3), np.uint8)
BOXES = np.tile(np.float32([4, 4, 12, 12]), (FRAMES, 1))
SHIFT = 0.125


class Clips(ClipSource):
    """A source of clips of three people in turn."""

    fingerprint = "0123456789abcdef"

    def __init__(self, clips=CLIPS, boxes=True):
        self.clips, self.with_boxes = clips, boxes

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        boxes = {"boxes": BOXES} if self.with_boxes else {}
        return {"video": self.clips[i], "fps": np.float32(4.0), **boxes}

    def origin(self, i):
        return f"person {i % 3}.mp4"


class Rendered(Clips, Renders):
    """A source that can render person i moving as clip j: it is clip j, inverted."""

    def swap(self, i, j):
        return 255 - self.clips[j]


class StubRun:
    """A run whose system returns the motion clip, darker or brighter by `SHIFT`."""

    def __init__(
        self, workdir, source=None, made=None, evaluators=("swap", "reconstruction"), **settings
    ):
        section = _shared.protocol(**{"batch": 4, "save_every": 1, **settings})
        names = [name for name in PROTOCOLS if name != "generation"]
        self.config = ConfigDict({"seed": 0, "evals": dict.fromkeys(names, section)})
        self.config.system = {"name": "stub"}
        self.config.data = {"kind": "videos", "common": {}}
        self.workdir = epath.Path(workdir)
        self.system = types.SimpleNamespace(
            face_side=0, share_kept=None, evaluators=lambda: evaluators
        )
        self.data, self.seen, self.made = Clips() if source is None else source, [], made or shifted

    def source(self, split):
        assert split == "eval"
        return self.data

    def rows(self, count):
        return -(-count // 8) * 8  # for eight devices

    def put_rows(self, batch):
        return {name: rows[(slice(None),)] for name, rows in batch.items()}

    def jit_sample(self):
        def sample(vars, batch, key):
            self.seen.append({name: np.asarray(value) for name, value in batch.items()})
            return {"video": self.made(np.asarray(batch["motion"]) / np.float32(255))}

        return sample


def shifted(video):
    return np.where(video > 0.5, video - SHIFT, video + SHIFT).astype(np.float32)


VARS = Vars({"kernel": np.arange(3.0)}, {}, {})


def results(name, run, vars=VARS):
    return {row.metric: row for row in evaluate(name, run, vars)}


# --- Figures --------------------------------------------------------------------------------------


def test_self_reenactment_of_a_known_error(tmp_path):
    run = StubRun(tmp_path)
    rows = results("self_reenactment", run)
    assert rows["l1"].value == pytest.approx(SHIFT, abs=1e-6)
    assert rows["psnr"].value == pytest.approx(-20 * np.log10(SHIFT), abs=1e-4)
    truth = CLIPS[:, 1:] / 255
    still = np.broadcast_to(truth[:, :1] * 0 + CLIPS[:, :1] / 255, truth.shape)
    assert rows["l1/copy_reference"].value == pytest.approx(np.abs(truth - still).mean(), abs=1e-6)
    assert rows["change_error"].n == rows["l1"].n == COUNT
    # The first frame is the content and all others are the motion; clips are in order, and the last one fills the
    # batch.
    contents = np.concatenate([batch["content"] for batch in run.seen])
    motions = np.concatenate([batch["motion"] for batch in run.seen])
    np.testing.assert_array_equal(contents[:COUNT], CLIPS[:, :1])
    np.testing.assert_array_equal(motions[:COUNT], CLIPS[:, 1:])
    assert contents.shape[0] == 16 and (motions[COUNT:] == CLIPS[-1, 1:]).all()
    for metric in ("fid", "fvd", "csim", "emo_sim", "aed", "apd", "aed_l1sum", "lpips_alex"):
        assert rows[metric].value is None and rows[metric].note.startswith("not computed: needs")
    stored = json.loads((tmp_path / "eval" / "self_reenactment.json").read_text())
    assert stored["clips"] == COUNT and {"commit", "device_kind"} <= stored.keys()
    assert stored["results"] == [row.to_dict() for row in evaluate("self_reenactment", run, VARS)]
    table = (tmp_path / "eval" / "self_reenactment.md").read_text()
    assert "| l1 | 0.1250 | mean_absolute | none | 16x16 | 11 |" in table


def test_targets_are_drawn_beyond_the_gap(tmp_path):
    # At 4 frames a second only frames 2 and 3 are beyond the gap.
    run = StubRun(tmp_path, targets=2, gap=0.25)
    rows = results("self_reenactment", run)
    np.testing.assert_array_equal(run.seen[0]["motion"], CLIPS[:8, 2:])
    assert "three consecutive frames" in rows["flicker"].note
    with pytest.raises(
        ConfigError, match=r"clips of 4 frames have only 2 that lie more than 0.25 s"
    ):
        results("self_reenactment", StubRun(tmp_path, targets=3, gap=0.25))


def test_clips_are_measured_at_the_size_that_is_asked_for(tmp_path):
    """Compares with Pillow's own bicubic resizing of made and true frames; the boxes are scaled, too."""
    from PIL import Image

    run = StubRun(tmp_path, size=12)
    rows = results("self_reenactment", run)

    def small(clip):
        channels = [
            Image.fromarray(c).resize((12, 12), Image.Resampling.BICUBIC)
            for c in np.moveaxis(clip.astype(np.float32), -1, 0)
        ]
        return np.stack([np.asarray(c) for c in channels], axis=-1)

    truth = [
        np.clip(np.rint(small(frame)), 0, 255) / 255
        for frame in CLIPS[:, 1:].reshape(-1, SIZE, SIZE, 3)
    ]
    made = [
        np.clip(small(frame), 0, 1)
        for frame in shifted(CLIPS[:, 1:] / np.float32(255)).reshape(-1, SIZE, SIZE, 3)
    ]
    assert rows["l1"].value == pytest.approx(
        np.abs(np.stack(truth) - np.stack(made)).mean(), abs=1e-4
    )
    assert rows["l1"].resolution == "12x12"
    work = build("self_reenactment", run).work(run, VARS)
    np.testing.assert_array_equal(work.make(0, 0, 1).boxes[0, 0], BOXES[0] * 0.75)
    with pytest.raises(ConfigError, match=r"config\.evals\.self_reenactment\.size=-1"):
        results("self_reenactment", StubRun(tmp_path / "b", size=-1))


def test_targets_are_drawn_from_the_driver_across_people(tmp_path):
    """Each pair takes `targets` frames of its driver, any of them, in order, as in Table 2 of WarpFace."""
    run = StubRun(tmp_path / "two", targets=2)
    rows = results("cross_reenactment", run)
    motions = np.concatenate([batch["motion"] for batch in run.seen])[:COUNT]
    by = protocols.partners([Clips().origin(i) for i in range(COUNT)])
    drawn = [
        [t for frame in motion for t in range(FRAMES) if (CLIPS[j, t] == frame).all()]
        for motion, j in zip(motions, by)
    ]
    assert all(len(frames) == 2 and frames[0] < frames[1] for frames in drawn)
    # The first frame is drawn, too.
    assert {t for frames in drawn for t in frames} == set(range(FRAMES))
    assert "three consecutive frames" in rows["flicker"].note
    again = StubRun(tmp_path / "again", targets=2)
    results("cross_reenactment", again)
    np.testing.assert_array_equal(again.seen[0]["motion"], run.seen[0]["motion"])
    # A true answer that is rendered is that of the drawn frames: the driver's frames inverted.
    known = StubRun(tmp_path / "known", Rendered(), made=lambda x: 1 - x, targets=2)
    assert results("cross_reenactment", known)["l1"].value == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match=r"targets=5: clips of 4 frames have only 4$"):
        results("cross_reenactment", StubRun(tmp_path / "five", targets=5))


def test_cross_reenactment_pairs_people_and_has_no_truth(tmp_path):
    run = StubRun(tmp_path)
    rows = results("cross_reenactment", run)
    assert "l1" not in rows and rows["csim"].value is None
    contents = np.concatenate([batch["content"] for batch in run.seen])[:COUNT]
    motions = np.concatenate([batch["motion"] for batch in run.seen])[:COUNT]
    assert contents.shape[1] == 1 and motions.shape[1] == FRAMES
    drivers = [int(np.flatnonzero((clip == CLIPS).all(axis=(1, 2, 3, 4)))[0]) for clip in motions]
    assert sorted(drivers) == list(range(COUNT))
    assert all(i % 3 != j % 3 for i, j in enumerate(drivers))


def test_motion_transfer_against_what_the_source_can_render(tmp_path):
    rows = results("motion_transfer", StubRun(tmp_path, Rendered(), lambda v: 1 - v))
    assert rows["l1"].value == pytest.approx(0, abs=1e-6)
    assert rows["l1/copy_driving"].value == pytest.approx(
        np.abs(2.0 * CLIPS / 255 - 1).mean(), abs=1e-5
    )
    assert "l1" not in results("motion_transfer", StubRun(tmp_path / "videos"))
    for metric in ("shape_error", "motion_error", "cross_error", "ard", "auh_count"):
        assert rows[metric].value is None


def test_reconstruction_in_vidtoks_conventions(tmp_path):
    run = StubRun(tmp_path)
    run.system.share_kept, run.system.window, run.system.overlap = 0.002, FRAMES - 1, 1
    rows = results("reconstruction", run)
    expected = -10 * np.log10(SHIFT**2 + 1e-8)
    assert rows["psnr/reconstruction"].value == pytest.approx(expected, abs=1e-4)
    truth = CLIPS / 255
    mean = np.broadcast_to(truth.mean(axis=1, keepdims=True), truth.shape)
    pairs = list(zip(truth.reshape(-1, SIZE, SIZE, 3), mean.reshape(-1, SIZE, SIZE, 3)))
    psnr = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in pairs]
    wang = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)
    ssim = [structural_similarity(a, b, channel_axis=-1, **wang) for a, b in pairs]
    assert rows["psnr/mean_frame"].value == pytest.approx(np.mean(psnr), abs=1e-3)
    assert rows["ssim/mean_frame"].value == pytest.approx(np.mean(ssim), abs=1e-4)
    assert rows["rate"].value == pytest.approx(0.2)
    # Windows of three frames begin at frames 0 and 2, so the changes into frames 2 and 3 count as those at a border.
    wrong = np.abs(np.diff(shifted(CLIPS / np.float32(255)) - truth, axis=1)).mean(
        axis=(0, 2, 3, 4)
    )
    assert rows["seam"].value == pytest.approx(wrong[1:].mean() / wrong[0], abs=1e-4)
    assert results("reconstruction", StubRun(tmp_path / "few", clips=3))["flicker"].n == 3


# --- Feature networks -----------------------------------------------------------------------------


def colours(scale):
    """Returns a stand-in network whose features are mean colours, for `rows` pictures (or clips) at a time."""

    def apply(variables, x):
        x = x.astype(jnp.float32)
        return scale * x.mean(axis=tuple(range(1, x.ndim - 1)))

    return FeatureNetwork("colours", apply, {}, rows=2, dim=3)


@pytest.fixture
def networks(monkeypatch):
    """Provides all feature networks, as tiny stand-ins."""

    def differ(variables, x, y):
        return jnp.abs(x - y).mean(axis=(1, 2, 3))

    def faces(variables, x):
        return x[:, ::8, ::8].reshape(len(x), -1)

    def emotion(variables, x):
        return x.mean(axis=(1, 2))[:, :2]

    made = {
        "fid_inception": colours(1.0),
        "i3d": colours(1.0),
        "arcface": FeatureNetwork("faces", faces, {}, rows=2),
        "emonet": FeatureNetwork("emotion", emotion, {}, rows=1, dim=2),
        "lpips_alex": FeatureNetwork("differ", differ, {}, rows=2),
        "lpips_vgg": FeatureNetwork("differ", differ, {}, rows=2, least=31),
    }
    monkeypatch.setattr(feature_networks, "load", lambda name, *_: made[name])
    return dict.fromkeys(made, "folder")


def moments(frames):
    return frechet.Moments.empty(3).update(frames.reshape(len(frames), -1, 3).mean(axis=1))


def test_every_network_is_read(tmp_path, networks):
    rows = results("self_reenactment", StubRun(tmp_path, weights=networks))
    real = CLIPS[:, 1:]
    made = np.rint(shifted(real / np.float32(255)) * 255).astype(np.uint8)
    flat = [v.reshape(-1, SIZE, SIZE, 3).astype(np.float64) for v in (real, made)]
    expected = frechet.frechet_distance(*map(moments, flat))
    assert rows["fid"].value == pytest.approx(expected, rel=1e-6) and rows["fid"].n == COUNT * 3
    clips = [v.reshape(COUNT, -1, SIZE, 3).astype(np.float64) for v in (real, made)]
    expected = frechet.frechet_distance(*map(moments, clips))
    assert rows["fvd"].value == pytest.approx(expected, rel=1e-5) and rows["fvd"].n == COUNT
    assert "clips of 3 frames" in rows["fvd"].note
    assert rows["lpips_alex"].value == pytest.approx(SHIFT, abs=1e-6)
    assert "frames of 31 pixels" in rows["lpips_vgg"].note
    assert 0 < rows["csim"].value < 1 and rows["csim"].convention == "arcface_box"
    assert rows["csim"].n == COUNT * 3
    assert -1 <= rows["emo_sim"].value <= 1


def test_the_same_picture_has_the_same_face(tmp_path, networks):
    run = StubRun(tmp_path, made=lambda video: video.astype(np.float32), weights=networks)
    rows = results("self_reenactment", run)
    assert rows["csim"].value == pytest.approx(1, abs=1e-6)
    assert rows["fid"].value == pytest.approx(0, abs=1e-6)


def test_without_boxes_faces_are_not_compared(tmp_path, networks):
    run = StubRun(tmp_path, Clips(boxes=False), weights=networks)
    rows = results("cross_reenactment", run)
    for metric in ("csim", "emo_sim"):
        assert "needs boxes of the faces" in rows[metric].note


def test_short_clips_have_no_fvd():
    network = FeatureNetwork("i3d", None, {}, dim=400, least=9)
    (row,) = measures.fvd(network, "tf", "16x16", 8).rows({}, "16x16", 5)
    assert "clips of 9 consecutive frames or more, these have 8" in row.note


def test_faces_lie_where_arcface_has_them():
    """A box of 74 pixels about (56, 75) is already in ArcFace's place, so the crop is the picture itself."""
    crops = []

    def remember(x):
        crops.append(np.asarray(x))
        return np.ones((len(x), 2))

    remember.weights = "w"
    picture = np.random.default_rng(1).integers(0, 256, (1, 1, 112, 112, 3), np.uint8)
    box = np.array([[[56 - 37, 75 - 37, 56 + 37, 75 + 37]]], np.float64)
    batch = Batch(picture / np.float32(255), picture, picture[:, 0], None, {}, box, box[:, 0])
    measure = measures.csim(remember, "driving")
    measure.update(measure.start, batch)
    np.testing.assert_allclose(crops[0], picture[0] / 127.5 - 1, atol=1e-5)


def test_a_network_from_a_folder_does_not_depend_on_the_batch(tmp_path):
    arguments = {"layers": [1, 1, 1, 1], "widths": [4, 4, 8, 8], "embedding": 6, "size": 16}
    net = IResNet(**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    faces = np.random.default_rng(0).uniform(-1, 1, (5, 16, 16, 3)).astype(np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), faces[:1])
    draw = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: draw.uniform(0.1, 0.3, x.shape).astype(np.float32), shapes)
    folder.write(tmp_path / "arcface", "arcface", arguments, variables)
    network = feature_networks.load("arcface", str(tmp_path / "arcface"))
    assert network.dim == 6 and len(network.weights) == 12
    want = np.asarray(jax.jit(net.apply)(variables, faces))
    np.testing.assert_allclose(network(faces), want, atol=1e-5)
    np.testing.assert_allclose(network(faces[3:]), want[3:], atol=1e-5)
    with pytest.raises(ConfigError, match=r"weights.emonet=.* holds arcface, expected emonet"):
        feature_networks.load("emonet", str(tmp_path / "arcface"))
    with pytest.raises(ConfigError, match=r"weights.i3d='nowhere'"):
        feature_networks.load("i3d", "nowhere")


# --- Interruptions and hosts ----------------------------------------------------------------------


class Stopped(Exception):
    pass


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, networks, monkeypatch, caplog):
    source, settings = (
        Clips(np.tile(CLIPS, (4, 1, 1, 1, 1))),
        {"weights": networks, "save_every": 2},
    )
    whole = results("self_reenactment", StubRun(tmp_path / "whole", source, **settings))

    def stop(video, calls=[0]):  # noqa: B006, the count is to last
        calls[0] += 1
        if calls[0] == 4:
            raise Stopped
        return shifted(video)

    run = StubRun(tmp_path / "cut", source, stop, **settings)
    with pytest.raises(Stopped):
        evaluate("self_reenactment", run, VARS)
    kept = [path.name for path in (tmp_path / "cut/eval/self_reenactment").glob("*.npz")]
    assert (
        kept == ["0000002.0of1.npz"] and not (tmp_path / "cut/eval/self_reenactment.json").exists()
    )
    run = StubRun(tmp_path / "cut", source, **settings)
    assert results("self_reenactment", run) == whole  # bit for bit
    assert len(run.seen) == 6 - 2
    # The work is finished, so nothing is made.
    run = StubRun(tmp_path / "cut", source, **settings)
    assert results("self_reenactment", run) == whole and not run.seen


@pytest.mark.parametrize(
    "changes, vars, said",
    [
        ({}, Vars({"kernel": np.array([0.0, 1.0, 2.001])}, {}, {}), "checkpoint "),
        ({"batch": 9}, VARS, "config.evals "),
        ({"clips": 9}, VARS, "clips was 11 of 0123456789ab and is now 9 of 0123456789ab"),
    ],
)
def test_what_was_measured_otherwise_is_begun_anew(tmp_path, caplog, changes, vars, said):
    results("reconstruction", StubRun(tmp_path))
    run = StubRun(tmp_path, **changes)
    with caplog.at_level(logging.WARNING):
        results("reconstruction", run, vars)
    assert run.seen and "was measured under other conditions and starts again" in caplog.text
    assert said in caplog.text


def test_two_hosts_together_measure_what_one_does(tmp_path, networks, monkeypatch):
    run = StubRun(tmp_path, Rendered(), weights=networks)
    one = evaluate("motion_transfer", run, VARS)
    monkeypatch.setattr(protocols, "_together", lambda what: None)
    protocol = build("motion_transfer", run)
    work = protocol.work(run, VARS)
    found = protocol.measures(run, work)
    start, folder, counted = (
        {each.name: each.start for each in found},
        run.workdir / "two [1-3]",
        [],
    )
    for process in range(2):
        kept = protocols.Kept(folder, {}, process, 2)
        done, states = kept.resume(start)
        assert not done
        for first in (0, 8):
            batch = work.make(first, process, 2)
            counted.append(0 if batch is None else len(batch.made))
            if batch is not None:
                states = {each.name: each.update(states[each.name], batch) for each in found}
        kept.save(2, states)
    assert counted == [4, 3, 4, 0]
    assert kept.resume(start)[0] == 2
    states = kept.merged(2, start)
    two = [row for each in found for row in each.rows(states[each.name], "16x16", COUNT)]
    one = one[: len(two)]  # the measures of other programs come after these
    assert [(row.metric, row.n, row.note) for row in one] == [
        (row.metric, row.n, row.note) for row in two
    ]
    # The value of a clip is float32, and one that was computed twice has been seen to differ in its last place.
    last = float(np.finfo(np.float32).eps)
    for first, second in zip(one, two):
        if first.value is not None:
            assert second.value == pytest.approx(first.value, rel=last, abs=1e-9), first.metric


def test_any_number_changes_the_digest():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": jnp.ones(4, jnp.bfloat16)}
    other = [
        {**tree, "a": tree["a"][::-1]},
        {**tree, "a": tree["a"].reshape(3, 2)},
        {**tree, "b": tree["b"].at[2].set(1.01)},
        {"a": tree["a"], "c": tree["b"]},
    ]
    assert protocols.digest(tree) == protocols.digest(jax.tree.map(np.copy, tree))
    assert len({protocols.digest(t) for t in [tree, *other]}) == 5


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made, said",
    [
        (lambda v: 2 * v - 1, r"must lie in \[0, 1\], but span -1"),
        (lambda v: v * np.float32("nan"), "diverged"),
        (lambda v: v[:, 1:], "of 4 frames of 16x16, but the system made 8 clips of 3 frames"),
        (lambda v: v[:, :, :8], "made 8 clips of 4 frames of 8x16"),
        (lambda v: (v * 255).astype(np.uint8), "must be floats"),
    ],
)
def test_clips_that_do_not_fit_are_refused(tmp_path, made, said):
    with pytest.raises(ValueError, match=said):
        results("reconstruction", StubRun(tmp_path, made=made))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"batch": 0}, "config.evals.reconstruction.batch=0"),
        ({"clips": -1}, "config.evals.reconstruction.clips=-1"),
        ({"fid": "png"}, "config.evals.reconstruction.fid='png': choose one of pytorch_fid"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        results("reconstruction", StubRun(tmp_path, **settings))


class Uneven(Clips):
    def __getitem__(self, i):
        return {"video": self.clips[i][: FRAMES - i % 2]}


class Latents(Clips):
    def __getitem__(self, i):
        return {"latents": np.zeros((4, 2, 2, 4), np.float16)}


def test_data_that_do_not_fit(tmp_path):
    for source, said in (
        (Uneven(), "clip 1 of the eval split has shape"),
        (Latents(), "'videos' hold latents: give the prepared clips"),
        (Clips(CLIPS[:0]), "has no clips"),
        (Clips(CLIPS[:, :1]), "two frames or more"),
    ):
        with pytest.raises(ConfigError, match=said):
            results("self_reenactment", StubRun(tmp_path, source))
    with pytest.raises(ConfigError, match="two clips, but the eval split has 1"):
        results("cross_reenactment", StubRun(tmp_path, Clips(CLIPS[:1])))


def test_a_protocol_that_a_system_cannot_follow(tmp_path):
    run = StubRun(tmp_path, evaluators=("reconstruction",))
    assert evaluators(run.system) == ("reconstruction",)
    with pytest.raises(
        ConfigError, match="'motion_transfer'; stub can be evaluated by reconstruction"
    ):
        results("motion_transfer", run)


def test_partners_are_of_other_videos_where_they_can_be(caplog):
    names = ["a"] * 3 + ["b"] * 2 + ["c"]
    paired = protocols.partners(names)
    assert sorted(paired) == list(range(6))
    assert all(names[i] != names[j] for i, j in enumerate(paired))
    assert not caplog.text
    for names, warning in (
        (["a"] * 5 + ["b"], "most clips are from one video, so some take"),
        (["a"] * 6, "all clips are from one video, so each takes"),
    ):
        with caplog.at_level(logging.WARNING):
            paired = protocols.partners(names)
        assert warning in caplog.text
        assert sorted(paired) == list(range(6)) and (paired != np.arange(6)).all()


# --- Generation, and clips from elsewhere ---------------------------------------------------------


def test_generated_clips_resemble_held_out_ones(tmp_path, networks, monkeypatch):
    """Compares twelve generated clips, six of each of two classes, with five real ones; two batches of eight make
    sixteen."""
    real = Clips(CLIPS[:5])
    twin = types.SimpleNamespace(source=lambda split: real, weights_digest=lambda: "d")
    made = []

    def generate(run, vars, labels, batch, first):
        made.append((labels.tolist(), first))
        return {"grey": 10 * (first + np.arange(len(labels)))}

    def decode(latents):
        grey = np.uint8(latents["grey"])[:, None, None, None, None]
        return np.broadcast_to(grey, (len(grey), FRAMES, SIZE, SIZE, 3))

    generation = protocols.class_generation
    monkeypatch.setattr(generation, "generate", generate)
    monkeypatch.setattr(generation, "decoder", lambda run, *_: (twin, decode))
    monkeypatch.setattr(
        protocols.encoded.VidTwinLatentsSource,
        "read_provenance",
        lambda path: {"classes": ["a", "b"]},
    )
    settings = {"per_class": 6, "autoencoder": "twin", "weights": networks}
    run = StubRun(tmp_path, evaluators=("class_generation",))
    section = _shared.protocol(batch=4, **settings, judge="")
    run.config.evals.generation = section
    run.system.latents = "latents"
    rows = results("generation", run)
    assert made == [([0, 1] * 4, 0), ([0, 1, 0, 1, 1, 1, 1, 1], 8)]
    greys = np.arange(0, 120, 10.0)[:, None].repeat(3, axis=1)
    means = CLIPS[:5].reshape(5, -1, 3).mean(axis=1)
    sets = [frechet.Moments.empty(3).update(x) for x in (means, greys)]
    assert rows["gfvd"].value == pytest.approx(frechet.frechet_distance(*sets), rel=1e-5)
    assert rows["gfvd"].note == "12 generated and 5 real clips of 4 frames"
    assert rows["flicker"].value == 0 and rows["flicker/driving"].n == 5
    run.config.evals.generation.autoencoder = ""
    with pytest.raises(
        ConfigError, match=r"config\.evals\.generation\.autoencoder names no VidTwin run"
    ):
        results("generation", run)


def test_results_of_other_networks_are_not_taken_up(tmp_path, networks, monkeypatch, caplog):
    """LPIPS keeps a mean alone, which cannot say by which network it was measured."""
    without = results("self_reenactment", StubRun(tmp_path))
    assert without["lpips_alex"].value is None
    measured = []
    for scale in (1.0, 2.0):

        def differ(variables, x, y, scale=scale):
            return scale * jnp.abs(x - y).mean(axis=(1, 2, 3))

        made = FeatureNetwork(f"times {scale}", differ, {}, rows=2)
        monkeypatch.setattr(feature_networks, "load", lambda name, *_, made=made: made)
        run = StubRun(tmp_path, weights={"lpips_alex": "folder"})
        measured.append(results("self_reenactment", run)["lpips_alex"].value)
        assert run.seen
    assert measured[1] == pytest.approx(2 * measured[0])
    assert "network of lpips_alex was times 1.0 and is now times 2.0" in caplog.text


def test_a_folder_of_prepared_clips_in_the_place_of_the_runs_own(tmp_path):
    with DatasetWriter(tmp_path / "clips", "videos") as writer:
        for i, clip in enumerate(CLIPS):
            source = np.frombuffer(f"{i}.mp4".encode(), np.uint8)
            numbers = {"length": np.int32(FRAMES), "fps": np.float32(4), "start": np.float64(0)}
            writer.write("test", {"video": clip, "source": source, **numbers})
    run = StubRun(tmp_path, data=str(tmp_path / "clips"), frames=2, decimate=2)
    run.source, run.config.evals.reconstruction.keep_clips = None, True
    assert results("reconstruction", run)["flicker"].note.endswith("three consecutive frames")
    seen = np.concatenate([batch["motion"] for batch in run.seen])[:COUNT]
    assert sorted(map(bytes, seen)) == sorted(map(bytes, CLIPS[:, :3:2]))
    kept = tmp_path / "eval" / "reconstruction" / "clips"
    assert sorted(p.name for p in kept.iterdir()) == [f"{i:06d}" for i in range(COUNT)]


@pytest.mark.parametrize(
    "name, shapes, dim",
    [
        ("fid_inception", [(2, 64, 48, 3)], 2048),
        ("i3d", [(2, 16, 64, 48, 3)], 400),
        ("arcface", [(2, 112, 112, 3)], 512),
        ("emonet", [(2, 256, 256, 3)], 2),
        ("lpips_alex", 2 * [(2, 64, 64, 3)], None),
    ],
)
def test_networks_at_their_published_sizes(name, shapes, dim):
    """Checks shapes only, without computing anything."""
    known = NETWORKS[name]
    arguments = {"lpips_alex": {"trunk": "alex"}}.get(name, {})
    network = feature_networks.NETWORKS[name](
        arguments, None, "styleganv_np" if name == "i3d" else "clean"
    )
    images = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    made = jax.eval_shape(network.apply, known.shapes(arguments), *images)
    assert made.shape == ((2,) if dim is None else (2, dim)) and network.dim == dim
