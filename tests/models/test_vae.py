"""The autoencoder against diffusers, a fixture and closed forms; the codec that needs no weights."""

import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidmotion import paths
from vidmotion.convert.engine import Ignore, check, convert, export
from vidmotion.convert.maps import vae as maps
from vidmotion.convert.read import read_manifest, write_safetensors
from vidmotion.models.blocks import Attention2D, Downsample, ResBlock
from vidmotion.models.vae import SIZES, AutoencoderKL, PatchCodec

SIZE = {"channels": (8, 16, 24), "layers_per_block": 1, "norm_groups": 4}


def shapes_of(net, shape=(1, 8, 8, 3)):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), x)["params"]


def as_numpy(state):
    return {key: value.detach().numpy() for key, value in state.items()}


def nchw(x):
    return np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1))


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def reference(channels, layers_per_block, norm_groups):
    """Returns diffusers' autoencoder with random weights, its norms moved away from the identity."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = diffusers.AutoencoderKL(
        block_out_channels=channels,
        layers_per_block=layers_per_block,
        norm_num_groups=norm_groups,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
    ).eval()
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "norm" in name:
                value.add_(0.2 * torch.randn_like(value))
    return module


def compare(size, image, atol):
    torch = pytest.importorskip("torch")
    module = reference(**size)
    net = AutoencoderKL(**size)
    variables = {"params": convert(shapes_of(net), as_numpy(module.state_dict()), maps.DIFFUSERS)}
    z = random(image.shape[0], 2, 3, 4, seed=1)
    mean, logvar = jax.jit(lambda v, x: net.apply(v, x, method="encode"))(variables, image)
    pixels = jax.jit(lambda v, z: net.apply(v, z, method="decode"))(variables, z)
    with torch.no_grad():
        moments = module.encode(torch.from_numpy(nchw(image))).latent_dist
        want = module.decode(torch.from_numpy(nchw(z))).sample
    np.testing.assert_allclose(nchw(mean), moments.mean, atol=atol)
    np.testing.assert_allclose(nchw(logvar), moments.logvar, atol=atol)
    np.testing.assert_allclose(nchw(pixels), want, atol=atol)


@pytest.mark.oracle
def test_equals_diffusers():
    compare(SIZE, random(2, 16, 24, 3), atol=1e-5)


@pytest.mark.oracle
@pytest.mark.slow
def test_equals_diffusers_at_full_width():
    compare(SIZES["sd"], random(1, 16, 24, 3), atol=1e-4)


@pytest.fixture(scope="module")
def state():
    """Returns a checkpoint in diffusers' spelling, made with our table alone."""
    shapes = shapes_of(AutoencoderKL(**SIZE))
    leaves = paths.flatten(shapes)
    filled = {k: random(*x.shape, seed=i) for i, (k, x) in enumerate(leaves.items())}
    return export(paths.unflatten(filled), maps.DIFFUSERS)


@pytest.mark.oracle
def test_export_loads_into_diffusers(state, tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch", exc_type=ImportError)
    module = reference(**SIZE)
    write_safetensors(tmp_path / "vae.safetensors", state)
    module.load_state_dict(safetensors_torch.load_file(tmp_path / "vae.safetensors"), strict=True)
    again = export(
        convert(shapes_of(AutoencoderKL(**SIZE)), as_numpy(module.state_dict()), maps.DIFFUSERS),
        maps.DIFFUSERS,
    )
    assert again.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


def test_old_attention_names(state):
    shapes = shapes_of(AutoencoderKL(**SIZE))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(key):
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        return key

    older = {renamed(key): value for key, value in state.items()}
    assert sum(key not in state for key in older) == 16
    want = convert(shapes, state, maps.DIFFUSERS)
    jax.tree.map(np.testing.assert_array_equal, convert(shapes, older, maps.DIFFUSERS), want)


ENCODER_ALONE = (
    *maps.DIFFUSERS_ENCODER,
    Ignore("decoder.*", "the temporal decoder is another network"),
)


def encoder_alone(shapes):
    return {part: shapes[part] for part in ("encoder", "quant")}


def test_covers_the_released_encoder(fixtures_dir):
    shapes = encoder_alone(shapes_of(AutoencoderKL(**SIZES["sd"])))
    check(shapes, read_manifest(fixtures_dir / "manifests" / "svd_temporal_vae.txt"), ENCODER_ALONE)


def test_encoder_equals_fixture(fixtures_dir):
    spec = importlib.util.spec_from_file_location("weights", fixtures_dir / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    fixture = np.load(fixtures_dir / "svd_vae.npz")
    net = AutoencoderKL(channels=(32, 32, 64, 64))
    params = convert(
        encoder_alone(shapes_of(net)),
        weights.state_dict(fixture["manifest"], seed=3),
        ENCODER_ALONE,
    )
    image = np.moveaxis(fixture["io/image"], 1, -1)
    mean, _ = jax.jit(lambda p, x: net.apply({"params": p}, x, method="encode"))(params, image)
    np.testing.assert_allclose(nchw(mean), fixture["io/mean"], atol=1e-4)


def count(channels, layers_per_block, norm_groups, latent=4):
    """Returns the number of parameters in closed form, which does not depend on `norm_groups`."""

    def conv(c_in, c_out, k=3):
        return (k * k * c_in + 1) * c_out

    def res(c_in, c_out):
        shortcut = conv(c_in, c_out, 1) if c_in != c_out else 0
        return 2 * c_in + conv(c_in, c_out) + 2 * c_out + conv(c_out, c_out) + shortcut

    def levels(widths, layers):
        chain = [(a, b) for a, b in itertools.pairwise([widths[0], *widths])]
        blocks = sum(res(a, b) + (layers - 1) * res(b, b) for a, b in chain)
        return blocks + sum(conv(c, c) for c in widths[:-1])

    first, last = channels[0], channels[-1]
    middle = 2 * res(last, last) + 2 * last + 4 * conv(last, last, 1)
    encoder = conv(3, first) + levels(channels, layers_per_block) + middle
    encoder += 2 * last + conv(last, 2 * latent)
    decoder = conv(latent, last) + levels(channels[::-1], layers_per_block + 1) + middle
    decoder += 2 * first + conv(first, 3)
    return encoder + decoder + conv(2 * latent, 2 * latent, 1) + conv(latent, latent, 1)


@pytest.mark.parametrize(("name", "parameters"), [("sd", 83_653_863), ("tiny", 261_079)])
def test_sizes(name, parameters):
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes_of(AutoencoderKL(**SIZES[name])))]
    assert sum(sizes) == parameters == count(**SIZES[name])


def test_sides_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match=r"multiples of 4, got \(1, 8, 10, 3\)"):
        shapes_of(AutoencoderKL(**SIZE), (1, 8, 10, 3))
    for shape in ((1, 12, 8, 3), (1, 8, 8, 8, 3)):
        with pytest.raises(ValueError, match="multiples of 8"):
            PatchCodec().apply({}, jnp.zeros(shape), method="encode")


def test_computes_in_bfloat16_with_float32_parameters():
    net = AutoencoderKL(**SIZE, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(net))} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    assert jax.eval_shape(net.init_with_output, jax.random.key(0), x)[0].dtype == jnp.bfloat16


# Blocks as the UNet uses them.


@pytest.mark.oracle
def test_res_block_with_noise_level_equals_diffusers():
    torch = pytest.importorskip("torch")
    resnet = pytest.importorskip("diffusers.models.resnet")
    torch.manual_seed(0)
    module = resnet.ResnetBlock2D(
        in_channels=8, out_channels=16, temb_channels=12, groups=4, eps=1e-5
    )
    net = ResBlock(16, groups=4, epsilon=1e-5)
    x, time = 1e-3 * random(2, 6, 6, 8), random(2, 12, seed=1)  # small, so that epsilon matters
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, time)["params"]
    state = as_numpy(module.state_dict())
    params = convert(
        {"net": shapes}, {f"m.{k}": v for k, v in state.items()}, maps.res_block("net", "m")
    )
    got = jax.jit(net.apply)({"params": params["net"]}, x, time)
    with torch.no_grad():
        want = module(torch.from_numpy(nchw(x)), torch.from_numpy(time))
    np.testing.assert_allclose(nchw(got), want, atol=1e-5)


def test_downsampling_pads_where_it_says():
    ones = {"params": {"conv": {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}}}
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    one_sided = Downsample(((0, 1), (0, 1))).apply(ones, x)[0, :, :, 0]
    symmetric = Downsample().apply(ones, x)[0, :, :, 0]
    np.testing.assert_allclose(one_sided, [[45, 39], [66, 50]])
    np.testing.assert_allclose(symmetric, [[10, 24], [51, 90]])


def test_attention_of_equal_positions_is_their_value():
    net = Attention2D(groups=2)
    x = random(1, 3, 3, 4)
    params = jax.jit(net.init)(jax.random.key(0), x)["params"]
    params["q"] = jax.tree.map(jnp.zeros_like, params["q"])  # makes the attention weights uniform
    got = jax.jit(net.apply)({"params": params}, x)
    groups = x.reshape(1, 9, 2, 2)
    centred = groups - groups.mean((1, 3), keepdims=True)
    y = (centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-6)).reshape(9, 4)
    value = y.mean(0) @ params["v"]["kernel"] @ params["out"]["kernel"]
    np.testing.assert_allclose(got - x, np.broadcast_to(value, x.shape), atol=1e-5)


# The codec without weights.


def test_patch_codec_is_an_orthogonal_projection():
    codec = PatchCodec()
    x = jnp.asarray(random(2, 16, 24, 3))
    assert codec.init(jax.random.key(0), x) == {}
    mean, logvar = codec.apply({}, x, method="encode")
    assert mean.shape == logvar.shape == (2, 2, 3, 4)
    seen = codec.apply({}, mean, method="decode")
    again, _ = codec.apply({}, seen, method="encode")
    np.testing.assert_allclose(again, mean, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(seen**2), jnp.sum(mean**2), rtol=1e-5)
    np.testing.assert_allclose(jnp.vdot(seen, x - seen), 0, atol=1e-3)
    np.testing.assert_allclose(mean[1, 1, 2, :3], 8 * x[1, 8:, 16:].mean((0, 1)), rtol=1e-4)


def test_patch_codec_basis_is_the_dct():
    scipy_fft = pytest.importorskip("scipy.fft")
    x = random(1, 8, 8, 3)
    mean, _ = PatchCodec().apply({}, x, method="encode")
    spectrum = scipy_fft.dctn(x[0], axes=(0, 1), norm="ortho")
    want = [*spectrum[0, 0], spectrum[0, 1].sum() / np.sqrt(3)]
    np.testing.assert_allclose(mean[0, 0, 0], want, atol=1e-5)
