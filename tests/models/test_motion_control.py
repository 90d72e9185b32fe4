"""The ControlNet that replaces motion cross-attention: what it adds and where, its size, its initial state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import paths
from vidmotion.models.motion_attention import DenoisingUNet
from vidmotion.models.motion_control import MotionControl
from vidmotion.models.stylegan import Synthesis
from vidmotion.models.unet import SIZES

SMALL = {
    "channels": (32, 64),
    "attention": (True, False),
    "layers_per_block": 1,
    "heads": 2,
    "norm_groups": 8,
}
NET = DenoisingUNet(**SMALL, context_width=0, control_side=4)
SIDE = 8  # of the latents; the middle is 4x4


def inputs(seed=0):
    """Returns latents, times and motion tokens."""
    rng = np.random.default_rng(seed)
    x, motion = rng.normal(size=(2, 2, SIDE, SIDE, 4)), rng.normal(size=(2, 2, 3, 5))
    return x.astype("f4"), np.float32([7, 801]), motion.astype("f4")


def shapes_of(net):
    x, time, motion = inputs()
    return jax.eval_shape(net.init, jax.random.key(0), x, time, None, motion)["params"]


def closed(params):
    """Sets the 1x1 convolutions to zero, as they are before training."""
    zero = {p: 0 * leaf if "/leave_" in p else leaf for p, leaf in paths.flatten(params).items()}
    return paths.unflatten(zero)


def apply(params, x, time, motion):
    return NET.apply({"params": params}, x, time, None, motion)


run = quick_jit(apply)


def test_what_is_added_has_the_shapes_of_the_way_down():
    control = MotionControl(**SMALL, context=False, side=4)
    _, time, motion = inputs()
    (added, middle), _ = jax.eval_shape(
        control.init_with_output, jax.random.key(0), motion, time, None
    )
    # Features after the first convolution and the layer at 8x8, then after the down-sampler and the layer at 4x4.
    want = [(2, 2, 8, 8, 32)] * 2 + [(2, 2, 4, 4, 32), (2, 2, 4, 4, 64)]
    assert [x.shape for x in added] == want and middle.shape == (2, 2, 4, 4, 64)


def test_parameters_of_stable_diffusions_size():
    """Counts each layer by hand: 3x3 convolutions, norms, the time, 1x1 convolutions, transformers."""

    def res(c, o):
        own = 2 * c + 9 * c * o + o + 1280 * o + o + 2 * o + 9 * o * o + o
        return own + (c * o + o if c != o else 0)

    def transformer(c):
        # Attention to the layer's own tokens, and to CLIP's of 768 numbers.
        attention = 2 * (4 * c * c + c) + 2 * (768 - c) * c
        return 2 * c + 2 * (c * c + c) + 6 * c + attention + 8 * c * c + 8 * c + 4 * c * c + c

    def styled(c):
        return 512 * c + c + 9 * c * c + c  # style and its bias, kernel and bias

    def conv(c):
        return 9 * c * c + c

    mapped = 16 * 1280 + 3 * styled(1280)
    time = 320 * 1280 + 1280 + 1280 * 1280 + 1280
    middle = 2 * res(1280, 1280) + transformer(1280)
    up = 3 * res(1280, 1280) + conv(1280)
    up += 3 * (res(1280, 1280) + transformer(1280)) + conv(1280)
    up += res(1280, 640) + 2 * res(640, 640) + 3 * transformer(640) + conv(640)
    up += res(640, 320) + 2 * res(320, 320) + 3 * transformer(320)
    # (channels of the stage, channels of the feature added to) for the middle and the way down, lowest resolution
    # first.
    leave = [(1280, 1280)] * 6 + [(1280, 640), (640, 640), (640, 640), (640, 320)]
    leave += [(320, 320)] * 3
    total = mapped + time + middle + up + sum(c * o + o for c, o in leave)
    assert total == 553_800_000
    net = DenoisingUNet(**SIZES["sd15"], control_side=8)
    given = jnp.zeros((1, 1, 64, 64, 4)), jnp.zeros(1), jnp.zeros((1, 1, 768))
    tree = jax.eval_shape(net.init, jax.random.key(0), *given, jnp.zeros((1, 1, 32, 16)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(tree["control"])) == total
    # The rest has no motion modules: 372,088,000 fewer (spec xnemo.md, section 0).
    others = sum(leaf.size for leaf in jax.tree.leaves(tree)) - total
    assert others == 1_684_818_244 - 372_088_000


def test_at_the_start_it_adds_nothing():
    """Before training the output equals, bit for bit, that of the network without control, whatever the motion."""
    params, (x, time, motion) = closed(random_like(shapes_of(NET), scale=0.1)), inputs()
    plain = DenoisingUNet(**SMALL, context_width=0)
    without = {name: leaf for name, leaf in params.items() if name != "control"}
    skip = quick_jit(lambda p: plain.apply({"params": p}, x, time, skip=("motion",)))(without)
    left = quick_jit(lambda p: NET.apply({"params": p}, x, time, skip=("motion",)))(params)
    assert np.any(np.asarray(skip))
    for told in (motion, 1 - motion):
        np.testing.assert_array_equal(run(params, x, time, told), skip)
    np.testing.assert_array_equal(left, skip)
    fresh = paths.flatten(quick_jit(NET.init)(jax.random.key(0), x, time, None, motion)["params"])
    leave = {path: leaf for path, leaf in fresh.items() if "/leave_" in path}
    assert len(leave) == 5 * 2 and not any(map(np.any, leave.values()))
    with pytest.raises(
        ValueError, match=r"no motion tokens were given; .* with skip=\('motion',\)"
    ):
        NET.apply({"params": params}, x, time)


def test_the_last_layer_is_added_to_the_first_feature():
    """A layer on the way up affects only later layers, which are added to earlier features on the way down."""
    control = MotionControl(**SMALL, context=False, side=4, opened=True)
    _, time, motion = inputs()
    fresh = quick_jit(control.init)(jax.random.key(0), motion, time, None)["params"]
    added_by = quick_jit(lambda p: control.apply({"params": p}, motion, time, None))
    plain = added_by(fresh)
    for moved, want in [
        ("up_1/res_1", [True, False, False, False, False]),
        ("up_1/res_0", [True, True, False, False, False]),
        ("up_0/res_1", [True, True, True, False, False]),
        ("up_0/res_0", [True, True, True, True, False]),
        ("mid/res_1", [True] * 5),
    ]:
        changed = {p: x + 0.1 * (moved in p) for p, x in paths.flatten(fresh).items()}
        added, middle = added_by(paths.unflatten(changed))
        pairs = zip((*added, middle), (*plain[0], plain[1]), strict=True)
        assert [bool(np.abs(a - b).max() > 1e-3) for a, b in pairs] == want, moved


def test_each_frame_has_the_map_of_its_own_motion():
    params, (x, time, motion) = random_like(shapes_of(NET), scale=0.1), inputs()
    other = motion.copy()
    other[1, 0] += 1
    skip = quick_jit(lambda p, m: NET.apply({"params": p}, x, time, None, m, skip=("temporal",)))
    changed = np.abs(skip(params, other) - skip(params, motion)).max((2, 3, 4))
    assert (changed > 1e-4).tolist() == [[False, False], [True, False]]


def test_after_one_step_all_of_it_learns():
    """At the first step only the 1x1 convolutions have gradients; the rest of the network is as if trained."""
    params, (x, time, motion) = closed(random_like(shapes_of(NET), scale=0.1)), inputs()
    toward = np.random.default_rng(5).normal(size=x.shape).astype("f4")
    pull = quick_jit(jax.grad(lambda p: jnp.mean(toward * apply(p, x, time, motion))))
    first = paths.flatten(pull(params)["control"])
    assert {path for path, leaf in first.items() if np.any(leaf)} == {
        path for path in first if path.startswith("leave_")
    }
    step = jax.tree.map(lambda x, g: x - 10 * g, params, pull(params))
    still = [path for path, leaf in paths.flatten(pull(step)["control"]).items() if not leaf.any()]
    assert not still, still


def test_a_map_without_colours():
    """`Synthesis` without colours returns the features from which an image of that size would be coloured."""
    style = np.random.default_rng(0).normal(size=(3, 6)).astype("f4")
    whole = Synthesis(size=8, channels=6, area=48)
    params = quick_jit(whole.init)(jax.random.key(0), style)["params"]
    kept = {name: leaf for name, leaf in params.items() if not name.startswith("rgb_")}
    features = Synthesis(size=8, channels=6, area=48, colours=False)
    got = features.apply({"params": kept}, style)
    assert jax.tree.structure(features.init(jax.random.key(0), style)["params"]) == (
        jax.tree.structure(kept)
    )
    seen = whole.apply({"params": params}, style, capture_intermediates=True)[1]["intermediates"]
    np.testing.assert_array_equal(got, seen["conv_8"]["__call__"][0])
    assert got.shape == (3, 8, 8, 6)
