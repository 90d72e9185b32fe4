"""The four-driver test, on stand-ins for systems that use their driver, their source, both or neither."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio
from test_transfer import StubRun, evaluated, lookup, rows_of

from vidmotion.data.heads import HeadsSource
from vidmotion.data.portraits import DrawnPortraitSource
from vidmotion.errors import ConfigError
from vidmotion.evaluation import keeping
from vidmotion.evaluation.drivers import Drivers
from vidmotion.evaluation.swap import Swap
from vidmotion.evaluation.transfer import derangement

CLIPS = 5


@pytest.fixture(scope="module")
def source():
    return HeadsSource(size=16, frames=3, clips=CLIPS, split="eval")


def stub(source, answer, **settings):
    """Returns a run whose system answers the clips with numbers (content, motion) with `answer(content, motion)`."""
    find = lookup(source, len(source))

    def sample(vars, batch):
        pairs = [(find(c), find(m)) for c, m in zip(batch["content"], batch["motion"])]
        return {"video": np.stack([answer(*pair) for pair in pairs]).astype(np.float32) / 255}

    return StubRun(sample, source, **{"pairs": 0, "batch": 4, **settings})


def decibel(first, second):
    return np.mean([min(peak_signal_noise_ratio(*frames), 100) for frames in zip(first, second)])


def mean_decibel(source, picked):
    """Returns the mean over clips of the PSNR between the true answers and the renders ``picked(i, j)``."""
    paired = derangement(len(source))
    pairs = list(enumerate(paired.tolist()))
    return np.mean([decibel(source.swap(i, j), source.swap(*picked(i, j))) for i, j in pairs])


def values_of(run):
    return {name: row.value for name, row in rows_of(evaluated(Drivers, run)).items()}


def test_a_perfect_system_loses_what_the_renders_differ_by(source):
    values = values_of(stub(source, source.swap))
    after = dict(enumerate(derangement(CLIPS).tolist()))
    before = {j: i for i, j in after.items()}
    assert values["psnr/true_driver"] == 100
    expected = {
        "no_driver": mean_decibel(source, lambda i, j: (i, i)),
        "wrong_driver": mean_decibel(source, lambda i, j: (i, after[j])),
        "wrong_source": mean_decibel(source, lambda i, j: (before[i], j)),
        "copy_source": mean_decibel(source, lambda i, j: (i, i)),
        "copy_driver": mean_decibel(source, lambda i, j: (j, j)),
    }
    for name, value in expected.items():
        assert values[f"psnr/{name}"] == pytest.approx(value, abs=1e-3)
        assert value < 30
    for name in ("no_driver", "wrong_driver", "wrong_source", "mean_picture"):
        difference = 100 - values[f"psnr/{name}"]
        assert values[f"psnr/true_over_{name}"] == pytest.approx(difference, abs=1e-3)
    # The wrong driver and the wrong source are always a third clip.
    for i, j in after.items():
        assert after[j] not in (i, j) and before[i] not in (i, j)


def test_a_system_that_ignores_its_driver_loses_nothing_without_it(source):
    values = values_of(stub(source, lambda content, motion: source[content]["video"]))
    for name in ("no_driver", "wrong_driver"):
        assert values[f"psnr/true_over_{name}"] == pytest.approx(0, abs=1e-4)
    assert values["psnr/true_driver"] == pytest.approx(values["psnr/copy_source"], abs=1e-4)
    assert values["psnr/true_over_wrong_source"] > 0.5


def test_a_system_that_ignores_its_source_loses_nothing_with_a_wrong_one(source):
    values = values_of(stub(source, lambda content, motion: source[motion]["video"]))
    assert values["psnr/true_over_wrong_source"] == pytest.approx(0, abs=1e-4)
    assert values["psnr/true_driver"] == pytest.approx(values["psnr/copy_driver"], abs=1e-4)


def test_the_mean_picture_of_all_clips_is_a_row(source):
    mean = np.mean([source[i]["video"] for i in range(CLIPS)], axis=(0, 1))
    truths = [source.swap(i, int(j)) for i, j in enumerate(derangement(CLIPS))]
    found = [10 * np.log10(255**2 / np.mean((f - mean) ** 2)) for t in truths for f in t]
    values = values_of(stub(source, lambda content, motion: np.broadcast_to(mean, (3, 16, 16, 3))))
    assert values["psnr/mean_picture"] == pytest.approx(np.mean(found), abs=1e-3)
    for name in ("mean_picture", "no_driver", "wrong_driver", "wrong_source"):
        assert values[f"psnr/true_over_{name}"] == pytest.approx(0, abs=1e-3)


def test_the_clips_of_training_are_taken_where_asked_for(source):
    train = HeadsSource(size=16, frames=3, clips=4, split="train")
    run = stub(train, train.swap, split="train")
    splits = []
    # Training reads pairs of frames from the clips; the test takes the whole clips.
    pairs = DrawnPortraitSource(train, 25.0, pair={"recipe": "face", "frames": 1, "size": 8})
    run.source = lambda split: splits.append(split) or pairs
    rows = rows_of(evaluated(Drivers, run))
    assert splits == ["train"]
    assert rows["psnr/true_driver"].value == 100 and rows["psnr/true_driver"].n == 4
    assert rows["psnr/true_driver"].convention.endswith("train clips")


def test_two_clips_have_no_third_and_one_has_no_other():
    two = HeadsSource(size=16, frames=2, clips=2, split="eval")
    rows = rows_of(evaluated(Drivers, stub(two, two.swap)))
    for name in ("wrong_driver", "wrong_source", "true_over_wrong_driver"):
        assert rows[f"psnr/{name}"].note == "not computed: needs three clips at least"
    assert rows["psnr/true_over_no_driver"].value > 0
    one = HeadsSource(size=16, frames=2, clips=1, split="eval")
    with pytest.raises(ConfigError, match=r"at least two clips, but config\.data\.eval gives 1$"):
        evaluated(Drivers, stub(one, one.swap))


def test_swap_and_drivers_sample_each_pass_once(source):
    run = stub(source, source.swap, batch=8)
    early, late = {}, {}  # the variables of two steps
    with keeping():
        both = [*evaluated(Swap, run, early), *evaluated(Drivers, run, early)]
        # One pass each with the true driver, the source itself, and the clip after the driver.
        assert len(run.sizes) == 3
        evaluated(Drivers, run, late)
        assert len(run.sizes) == 6
    assert len(rows_of(both)) == len(both)  # no two rows have the same name
    evaluated(Drivers, run, late)
    assert len(run.sizes) == 9
    alone = stub(source, source.swap, batch=8)
    assert set(evaluated(Swap, alone, early)) <= set(both)
    assert len(alone.sizes) == 2
