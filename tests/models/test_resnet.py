"""ResNet against transformers, its converter, and the appearance encoder."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion.convert import __main__ as command
from vidmotion.convert import engine
from vidmotion.convert.maps.resnet import RULES
from vidmotion.models import resnet

TINY = dict(depths=(2, 1), width=8)


def abstract(net, side=32):
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), image)


def torchvision_name(key):
    """Converts a key of transformers' `ResNetModel` to torchvision's spelling."""
    key = key.replace("embedder.embedder.convolution", "conv1")
    key = key.replace("embedder.embedder.normalization", "bn1")

    def stage(match):
        return f"layer{int(match[1]) + 1}.{match[2]}."

    key = re.sub(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", stage, key)
    key = key.replace("shortcut.convolution", "downsample.0")
    key = key.replace("shortcut.normalization", "downsample.1")
    key = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", key)
    return re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", key)


@pytest.mark.oracle
def test_equals_transformers_in_evaluation_and_training():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, depths = TINY["width"], TINY["depths"]
    config = transformers.ResNetConfig(
        embedding_size=width, hidden_sizes=[4 * width, 8 * width], depths=list(depths)
    )
    oracle = transformers.ResNetModel(config).eval()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, value in oracle.named_buffers():
            if name.endswith("running_var"):
                value.copy_(torch.from_numpy(0.5 + rng.uniform(size=value.shape)))
            elif name.endswith("running_mean"):
                value.copy_(torch.from_numpy(0.1 * rng.normal(size=value.shape)))
        for value in oracle.parameters():
            value.add_(torch.from_numpy(rng.normal(size=value.shape)).float(), alpha=0.02)
    x = rng.uniform(-1, 1, size=(3, 36, 44, 3)).astype(np.float32)
    colours = (x / 2 + 0.5 - resnet.MEAN) / resnet.DEVIATION
    given = torch.from_numpy(colours.astype(np.float32).transpose(0, 3, 1, 2))
    state = {torchvision_name(k): v.numpy().copy() for k, v in oracle.state_dict().items()}
    state["fc.weight"] = np.zeros((10, 4), np.float32)
    with torch.no_grad():
        expected = oracle(given).last_hidden_state.numpy()
        trained = oracle.train()(given).last_hidden_state.numpy()
    after = {torchvision_name(k): v.numpy() for k, v in oracle.state_dict().items()}

    net = resnet.ResNet(**TINY)
    variables = engine.convert(abstract(net), state, RULES)

    @quick_jit
    def both(variables, x):
        return net.apply(variables, x), net.apply(variables, x, train=True, mutable=["batch_stats"])

    got, (got_trained, new) = both(variables, x)
    np.testing.assert_allclose(got, expected.transpose(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(got_trained, trained.transpose(0, 2, 3, 1), atol=1e-4)
    exported = engine.export({**variables, **new}, RULES)
    assert len(exported) == len([key for key in after if "tracked" not in key])
    for key, value in exported.items():
        np.testing.assert_allclose(value, after[key], atol=1e-5, err_msg=key)


def test_parameter_count_of_resnet_50():
    network = command.NETWORKS["resnet50"]
    tree = network.shapes(network.arguments({}, {}))["params"]
    # torchvision's 25,557,032 minus the classifier's 2048 x 1000 + 1000.
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == 25_557_032 - 2_049_000


def test_appearance_is_a_projection_of_the_mean():
    sizes = dict(depths=(1,), width=4)
    net, trunk = resnet.AppearanceEncoder(features=5, **sizes), resnet.ResNet(**sizes)
    x = np.random.default_rng(0).uniform(-1, 1, size=(2, 32, 32, 3)).astype(np.float32)
    variables = abstract(net)
    params = random_like(variables["params"])
    stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables["batch_stats"])

    @quick_jit
    def both(params):
        inner = {"params": params["trunk"], "batch_stats": stats["trunk"]}
        return net.apply({"params": params, "batch_stats": stats}, x), trunk.apply(inner, x)

    got, maps = both(params)
    assert got.shape == (2, 5)
    want = np.mean(maps, axis=(1, 2)) @ params["out"]["kernel"] + params["out"]["bias"][None]
    np.testing.assert_allclose(got, want, atol=1e-4)
