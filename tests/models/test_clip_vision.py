"""CLIP's image tower against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from vidmotion.convert.engine import convert
from vidmotion.convert.maps.clip import RULES, sizes
from vidmotion.models.features.clip import SIZES, ClipVision, normalise

SIZE = SIZES["tiny"]


def shapes_of(net):
    x = jax.ShapeDtypeStruct((1, net.size, net.size, 3), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), x)["params"]


def pictures():
    """Returns two random uint8 pictures."""
    shape = 2, SIZE["size"], SIZE["size"], 3
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.oracle
def test_equals_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=SIZE["width"],
        intermediate_size=SIZE["mlp_dim"],
        num_hidden_layers=SIZE["layers"],
        num_attention_heads=SIZE["heads"],
        patch_size=SIZE["patch"],
        image_size=SIZE["size"],
        projection_dim=SIZE["embedding"],
    )
    assert config.hidden_act == "quick_gelu" and config.layer_norm_eps == 1e-5
    module = transformers.CLIPVisionModelWithProjection(config).eval()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.2 * torch.randn_like(value))
    state = {key: x.detach().numpy() for key, x in module.state_dict().items()}
    found = sizes({k: x.shape for k, x in state.items()})
    assert found | {"heads": SIZE["heads"]} == SIZE
    net = ClipVision(**SIZE)
    params = convert(shapes_of(net), state, RULES)
    x = normalise(pictures() / np.float32(255))
    got = quick_jit(net.apply)({"params": params}, x)
    with torch.no_grad():
        nchw = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
        want = module(nchw).image_embeds
    np.testing.assert_allclose(got, want, atol=1e-5 * float(want.abs().max()))


@pytest.mark.oracle
def test_normalises_as_its_processor_does():
    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    x = pictures()
    processor = processing.CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    want = processor(list(x), return_tensors="np")["pixel_values"]
    got = normalise(x / np.float32(255))
    np.testing.assert_allclose(np.moveaxis(got, -1, 1), want, atol=1e-6)


@pytest.mark.parametrize(("name", "parameters"), [("vit_l14", 303_966_208), ("tiny", 14_784)])
def test_sizes(name, parameters):
    tree = shapes_of(ClipVision(**SIZES[name]))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == parameters


def test_pictures_of_another_size_are_refused():
    with pytest.raises(
        ValueError, match=r"expected pictures \(b, 28, 28, 3\), got \(1, 14, 28, 3\)"
    ):
        ClipVision(**SIZE).init(jax.random.key(0), jnp.zeros((1, 14, 28, 3)))
