"""Portraits and drivers as people have them: what is seen of them, what is warned of, and how many frames are held.

The system is a stand-in whose pictures are sums that can be worked out by hand; `test_reenact_xnemo.py` tests X-NeMo.
"""

import logging
import os
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vidmotion import animate, media, sharding
from vidmotion.animate import CROPS, Faces
from vidmotion.data import faces
from vidmotion.errors import ConfigError
from vidmotion.system import Vars

SIDE, SIZE = 16, 32
FOUND = Faces()


class StandIn:
    """A system whose motion is a crop's mean and the place of its face; a picture is the portrait plus both."""

    face_side, size = SIDE, SIZE
    encoder = types.SimpleNamespace(frames=1)

    @property
    def codec(self):
        return types.SimpleNamespace(decode=lambda consts, latent: latent)

    def motion_of(self, vars, crops):
        return vars.params["model"]["motion"] * crops.mean(axis=(2, 3, 4))[..., None]

    def look(self, vars, portrait):
        return vars.params["model"]["reference"] * portrait.astype(jnp.float32) / 255

    def move(self, vars, seen, vector_bfm, f_rts, still_b1m, key):
        shift = f_rts[..., :1] + vars.params["model"]["denoiser"] * (vector_bfm - still_b1m) / 255
        return jnp.clip(seen[:, None] + shift[..., None, None], 0, 1)


class Networks:
    """Stands in for `Run.vars_by_part`; records the names of each request and how many networks were held then."""

    def __init__(self):
        self.asked, self.read = [], []

    def __call__(self):
        def read(*names):
            self.asked.append((names, sum(network() is not None for network in self.read)))
            network = jax.device_put(np.float32(1))
            self.read.append(weakref.ref(network))
            return Vars({"model": dict.fromkeys(names, network)}, {}, {})

        return read


@pytest.fixture(scope="module")
def run():
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    return types.SimpleNamespace(system=StandIn(), mesh=mesh, vars_by_part=Networks())


@pytest.fixture
def drive(monkeypatch):
    """Returns a function that replaces the video by frames, and the detector by boxes for a picture's first pixel."""

    def put(frames, found=lambda first: [(8, 8, 24, 24)]):
        monkeypatch.setattr(media, "iter_video", lambda path: iter(frames()))

        def find(picture):
            return np.array(found(int(picture[0, 0, 0])), np.float64).reshape(-1, 4)

        monkeypatch.setattr(faces, "find_faces", find)

    return put


def flat(value, side=48):
    return np.full((side, side, 3), value, np.uint8)


def made(run, picture, where=FOUND, name="a.png"):
    portraits, pictures = zip(*animate.animated(run, picture, name, "b.mp4", where), strict=True)
    return np.stack(portraits), np.stack(pictures)


def test_one_large_network_at_a_time(run, drive):
    drive(lambda: [flat(100)] * 3)
    run.vars_by_part.__init__()
    made(run, flat(100))
    assert [names for names, _ in run.vars_by_part.asked] == [
        ("motion",),
        ("reference",),
        ("denoiser", "motion"),
    ]
    # The motion network stays; the reference network is gone when the denoiser is read.
    assert [held for _, held in run.vars_by_part.asked] == [0, 1, 1]


# -- the portrait -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["alpha", "grey", "16 bits", "turned"])
def test_pictures_of_other_kinds_are_as_good(run, drive, tmp_path, kind):
    """The box lies where the face is in the picture as it is meant to be seen."""
    ramp = np.add.outer(2 * np.arange(60), np.arange(48)).astype(np.uint8)
    upright = np.repeat(ramp[..., None], 3, axis=2)
    path, exif = tmp_path / "a.png", Image.Exif()
    if kind == "alpha":
        picture = Image.fromarray(np.dstack([upright, np.full((60, 48), 255, np.uint8)]))
    elif kind == "grey":
        picture = Image.fromarray(ramp)
    elif kind == "16 bits":
        picture = Image.fromarray(ramp.astype(np.uint16) * 257)
    else:
        exif[0x0112] = 6  # a quarter turn clockwise makes it upright
        picture = Image.fromarray(np.rot90(upright).copy())
    picture.save(path, exif=exif)
    drive(lambda: [flat(0)])
    portraits, _ = made(run, animate.first_picture(str(path)), Faces("10,20,26,36", "whole"))
    # The face of 16 pixels lies in a square of 32 about it, so nothing is scaled.
    np.testing.assert_array_equal(portraits[0], upright[12:44, 2:34])


def test_a_small_portrait_is_enlarged_and_said_to_be(run, drive, caplog):
    drive(lambda: [flat(0)])
    with caplog.at_level(logging.WARNING):
        portraits, pictures = made(run, flat(77, 40))
    assert portraits.shape == pictures.shape == (1, SIZE, SIZE, 3)
    assert np.unique(portraits).tolist() == [77]
    assert "a.png: enlarged from 40 x 40 pixels" in caplog.text
    caplog.clear()
    made(run, flat(77, 64))
    assert not caplog.text


def test_no_face_in_the_portrait_is_refused_before_the_driver_is_read(run, drive):
    def frames():
        raise AssertionError("the video was read")

    drive(frames, lambda first: [])
    with pytest.raises(faces.FaceError, match=r"no face was found in a\.png .*whole picture"):
        made(run, flat(0))


def test_of_several_faces_the_largest_is_taken_and_said(run, drive, caplog):
    picture = np.tile(np.arange(100, dtype=np.uint8)[None, :, None], (100, 1, 3))
    drive(lambda: [flat(0)], lambda first: [(2, 40, 12, 50), (60, 40, 76, 56)])
    with caplog.at_level(logging.WARNING):
        portraits, _ = made(run, picture, Faces(driver="whole"))
    assert (
        "a.png: several faces in 1 frames: the one that is largest at first is followed"
        in caplog.text
    )
    # The square has twice the side of the larger face and the same centre.
    np.testing.assert_array_equal(portraits[0, 0, :, 0], np.arange(52, 84))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("5,5,5,9", "is empty: it needs x0 < x1 and y0 < y1"),
        ("1,2,3", "1,2,3"),
        ("gone.json", "gone.json"),
    ],
)
def test_places_that_are_none(run, drive, box, message):
    drive(lambda: [flat(0)])
    with pytest.raises(Exception, match=message) as caught:
        made(run, flat(0), Faces(box))
    assert type(caught.value).__name__ in ("ConfigError", "DatasetError")


# -- the driver -------------------------------------------------------------------------------------


def test_a_face_lost_for_a_while_is_bridged_and_told(run, drive, caplog):
    """A frame's number is in its first pixel; the face moves right by a pixel a frame and is hidden for ten frames."""
    count, hidden = 40, range(15, 25)
    frames = np.zeros((count, 100, 100, 3), np.uint8)
    frames[:, :, :, 1] = np.arange(100)[None, None]
    frames[:, 0, 0, 0] = np.arange(count)

    def found(first):
        return [] if first in hidden else [(20 + first, 30, 40 + first, 50)]

    drive(lambda: frames, found)
    with caplog.at_level(logging.WARNING):
        _, pictures = made(run, flat(0), Faces("whole", "detect", "first"))
    assert (
        "b.mp4: no face was found in 10 of 40 frames: its place there is estimated" in caplog.text
    )
    # f_rts begins with y, which does not change. What remains is the mean of a crop, whose centre is smoothed.
    boxes = np.array([(20 + i, 30, 40 + i, 50) for i in range(count)], np.float64)
    squares = faces.driving_boxes(boxes, 100, 100)
    means = [faces.crop(f, s, SIDE).mean() for f, s in zip(frames, squares)]
    np.testing.assert_allclose(pictures[:, 0, 0, 0], means, atol=1)


def test_a_driver_without_any_face_is_refused(run, drive):
    drive(lambda: [flat(3)] * 4, lambda first: [] if first == 3 else [(8, 8, 24, 24)])
    with pytest.raises(faces.FaceError, match=r"no face was found in b\.mp4 \(4 pictures"):
        made(run, flat(100))


def test_boxes_of_a_file_follow_a_rate_that_varies(run, hard, tmp_path):
    """The box file has a line for each of the video's 35 frames, and 75 frames are shown."""
    lines = [f"vfr.mp4,{k / 10},0,{20 + k / 10},20" for k in range(35)]
    path = tmp_path / "boxes.csv"
    path.write_text("\n".join(["file,x0,y0,x1,y1", *lines]))
    where = Faces("whole", str(path))
    shown = animate.animated(run, flat(100), "a.png", str(hard / "vfr.mp4"), where)
    assert len(list(shown)) == 75


def test_a_pipe_is_not_waited_for_as_codes(tmp_path):
    os.mkfifo(tmp_path / "codes.safetensors")
    with pytest.raises(ConfigError, match="not a file"):
        animate.read_codes(str(tmp_path / "codes.safetensors"))


def test_motion_relative_to_the_first_frame(run, drive):
    """The face moves down by half its side: a shift of 0.5 against the first frame, wherever the portrait's face is."""
    drive(
        lambda: [flat(k // 6) for k in range(12)],
        lambda first: [(8, 8 + 10 * first, 28, 28 + 10 * first)],
    )
    whole = flat(0)
    _, still = made(run, whole, Faces("whole", "detect", "still"))
    _, moved = made(run, whole, Faces("whole", "detect", "first"))
    assert still.max() <= 1
    assert moved[:6].max() == 0 and np.abs(moved[6:].astype(int) - 128).max() <= 1


@pytest.mark.parametrize("count", [3 * CROPS, 5000])
def test_frames_are_let_go_at_any_length(run, drive, monkeypatch, count):
    """For 5,000 frames no more pictures of the driver are held than for 48: those of two chunks of crops."""
    alive, most = weakref.WeakSet(), [0]

    class Frame(np.ndarray):
        """A frame that can be counted."""

    class Mark:
        """A mark to be kept in a set, which would compare frames by value."""

    def marked(array):
        array = array.copy().view(Frame)
        array.mark = Mark()
        alive.add(array.mark)
        most[0] = max(most[0], len(alive))
        return array

    def frames():
        for i in range(count):
            yield marked(flat(i % 200, 20))

    crop = faces.crop
    monkeypatch.setattr(faces, "crop", lambda *arguments: marked(crop(*arguments)))
    drive(frames, lambda first: [(2, 2, 18, 18)])
    total = 0
    for _, picture in animate.animated(run, flat(0), "a.png", "b.mp4", Faces("whole")):
        assert abs(int(picture[0, 0, 0]) - total % 200) <= 1
        total += 1
    assert total == count
    assert most[0] <= 2 * CROPS + 4
