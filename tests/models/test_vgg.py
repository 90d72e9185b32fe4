"""VGG's activations against plain torch, and its converter."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from vidmotion.convert import __main__ as command
from vidmotion.convert import engine
from vidmotion.convert.maps.vgg import VGG19, VGG_FACE
from vidmotion.models.features.vgg import SIZES, VGGActivations

# torchvision's layouts; M is a pooling layer.
LAYOUTS = {
    "vgg19": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
    "vgg_face": [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"],
}
RULES = {"vgg19": VGG19, "vgg_face": VGG_FACE}
PREFIX = {"vgg19": "features.", "vgg_face": ""}


def classifier(torch, layout, layers):
    """Returns the network and its first `layers` layers, with average pooling as in the pose descriptors' code."""
    modules, channels = [], 3
    for width in layout:
        if width == "M":
            modules.append(torch.nn.AvgPool2d(2))
        else:
            modules += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            channels = width
    return torch.nn.Sequential(*modules), modules[:layers]


@pytest.mark.oracle
def test_activations_equal_torch():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = np.random.default_rng(0).uniform(-1, 1, size=(1, 18, 16, 3)).astype(np.float32)
    whole, first = classifier(torch, LAYOUTS["vgg19"], 30)
    state = {f"features.{key}": value.numpy() for key, value in whole.state_dict().items()}
    state["classifier.0.bias"] = np.zeros(3, np.float32)
    net = VGGActivations(**SIZES["vgg19"])
    tree = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    got = quick_jit(net.apply)({"params": engine.convert(tree, state, VGG19)}, x)
    mean = np.float32([103.939, 116.779, 123.680]) / 255
    y = torch.tensor(((x / 2 + 0.5 - mean) / (1 / 255)).transpose(0, 3, 1, 2))
    want = []
    with torch.no_grad():
        for module in first:
            y = module(y)
            if isinstance(module, torch.nn.ReLU):
                want.append(y.numpy().transpose(0, 2, 3, 1))
    assert len(got) == len(want) == 13
    for ours, theirs in zip(got, want):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_key_has_its_place(name):
    shapes, place, channels = {}, 0, 3
    for width in LAYOUTS[name]:
        if width != "M":
            shapes[f"{PREFIX[name]}{place}.weight"] = (width, channels, 3, 3)
            shapes[f"{PREFIX[name]}{place}.bias"] = (width,)
            channels, place = width, place + 1
        place += 1
    net = VGGActivations(**SIZES[name])
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    maps, variables = jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x), image)
    assert len(maps) == 13
    engine.check(variables["params"], shapes, RULES[name])
    network = command.NETWORKS[name]
    arguments = json.loads(json.dumps(network.arguments(shapes, {})))  # as the folder stores them
    assert network.rules is RULES[name]
    engine.check(network.shapes(arguments), shapes, network.rules)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="at least 16x16"):
        VGGActivations(**SIZES["vgg19"]).init(jax.random.key(0), jnp.zeros((1, 8, 32, 3)))
