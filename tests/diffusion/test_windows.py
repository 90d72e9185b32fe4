"""Windows of long videos: lists written by hand, coverage, averaging, and memory that does not grow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion.diffusion.samplers import ddim
from vidmotion.diffusion.windows import Windows, windowed

KEY = jax.random.key(3)


@pytest.mark.parametrize("frames", [1, 7, 24])
def test_a_short_video_is_one_window(frames):
    windows = Windows(frames)
    assert windows.offset(KEY) == 0
    np.testing.assert_array_equal(windows.indices(windows.offset(KEY)), [range(frames)])


def test_lists_by_hand():
    assert Windows(44).starts.tolist() == [0, 20, 40]
    lists = Windows(44).indices(5).tolist()
    assert lists[0] == list(range(5, 29))
    assert lists[1] == list(range(25, 44)) + list(range(5))
    assert lists[2] == [1 + k for k in range(24)]  # indices from 45 on wrap around
    assert Windows(25).indices().tolist() == [
        list(range(24)),
        [20, 21, 22, 23, 24, *range(19)],
    ]
    assert Windows(7, length=4, overlap=1).indices(2).tolist() == [
        [2, 3, 4, 5],
        [5, 6, 0, 1],
        [1, 2, 3, 4],
    ]


@pytest.mark.parametrize("frames", [25, 40, 44, 48, 100, 128, 500])
def test_every_frame_is_seen_once_or_twice_and_no_window_repeats_one(frames):
    windows = Windows(frames)
    for offset in (0, 1, 11, 23):
        indices = np.asarray(windows.indices(offset))
        assert indices.shape == (-(-frames // 20), 24)
        assert all(len(set(window)) == 24 for window in indices)
        counts = np.bincount(indices.ravel(), minlength=frames)
        assert set(counts) <= {1, 2} and len(counts) == frames


def test_offsets_are_all_of_a_window_and_the_steps_own():
    windows = Windows(100)
    keys = jax.random.split(KEY, 500)
    drawn = np.asarray(jax.vmap(windows.offset)(keys))
    assert set(drawn) == set(range(24))


@pytest.mark.parametrize("together", [1, 2, 4, 99])
def test_the_mean_over_the_windows_that_hold_a_frame(together):
    windows = Windows(11, length=4, overlap=2)  # 6 windows
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 11, 3)).astype(np.float32)
    c = rng.normal(size=(2, 11)).astype(np.float32)

    # Each frame's prediction depends on its neighbours in the window.
    def predict(x, time, condition):
        return jnp.cumsum(x, 1) * time + condition["c"][..., None]

    whole = jax.jit(windowed(predict, {"c": c}, windows, KEY, together))
    offsets = set()
    for time in (3, 8, 21):
        offset = int(windows.offset(jax.random.fold_in(KEY, time)))
        offsets.add(offset)
        total, count = np.zeros_like(x), np.zeros(11)
        for start in range(0, 11, 2):
            index = [(start + offset + k) % 11 for k in range(4)]
            total[:, index] += np.cumsum(x[:, index], 1) * time + c[:, index, None]
            count[index] += 1
        np.testing.assert_allclose(
            whole(x, jnp.int32(time)), total / count[:, None], rtol=2e-5, atol=2e-5
        )
    assert len(offsets) > 1


def test_what_looks_at_one_frame_only_is_not_changed_by_windows():
    x = np.random.default_rng(1).normal(size=(1, 61, 2)).astype(np.float32)
    times, alpha_bar = np.array([9, 6, 3, 0]), np.linspace(0.99, 0.1, 10)
    plain = ddim(lambda x, t: jnp.tanh(x) * t, jnp.asarray(x), times, alpha_bar)
    cut = windowed(lambda x, t, _: jnp.tanh(x) * t, None, Windows(61), KEY, 2)
    np.testing.assert_allclose(
        ddim(cut, jnp.asarray(x), times, alpha_bar), plain, rtol=1e-4, atol=1e-4
    )


def test_memory_is_that_of_the_windows_whatever_the_length():
    def scratch(frames):
        """Returns the temporary memory in bytes of a network that uses 512 numbers internally per input number."""

        def predict(x, time, _):
            wide = jnp.tanh(x[..., None] * jnp.arange(512.0).reshape(1, 1, 1, -1) + time)
            return jnp.sort(wide, -1)[..., 7]

        whole = windowed(predict, None, Windows(frames), KEY)
        run = jax.jit(whole).lower(jnp.zeros((1, frames, 64)), jnp.int32(1)).compile()
        return run.memory_analysis().temp_size_in_bytes

    short, long = scratch(100), scratch(5000)
    video = 4900 * 64 * 4  # bytes by which the two videos differ
    assert long - short < 4 * video  # only the sums and counts grow: a few copies of the video
    assert short > 24 * 64 * 512 * 4 / 2  # the network's own memory was counted


def test_wrong_sizes_are_refused():
    for wrong in ({"frames": 0}, {"frames": 9, "length": 4, "overlap": 4}):
        with pytest.raises(ValueError, match="windows need"):
            Windows(**wrong)
