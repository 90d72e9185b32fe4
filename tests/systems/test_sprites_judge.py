"""The Sprites judge against the same network in torch; its running statistics and its metrics."""

import itertools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import system as systems
from vidmotion.errors import ConfigError
from vidmotion.system import Vars, check_batch
from vidmotion.systems.sprites_judge import LABELS, labels_of

TINY = dict(name="sprites_judge", frames=3, width=4, features=6, hidden=5, head=7)
CLIPS = 4


def random_batch(seed=0):
    rng = np.random.default_rng(seed)
    # Large blocks make clips differ for the network; noise does not.
    large = rng.integers(0, 256, (CLIPS, 3, 2, 2, 3), np.uint8)
    return {
        "video": large.repeat(32, axis=2).repeat(32, axis=3),
        "action": rng.integers(0, 9, CLIPS).astype(np.int32),
        "attributes": rng.integers(0, 6, (CLIPS, 4)).astype(np.int32),
    }


@pytest.fixture(scope="module")
def judge():
    """Returns (system, random variables, compiled loss, compiled sample)."""
    system = systems.build(TINY)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(system.init, jax.random.key(0), random_batch())
    params = jax.tree.map(np.asarray, random_like(shapes, scale=0.5))
    mutable = flax.traverse_util.flatten_dict(system.init_mutable())
    mutable = {
        path: (rng.normal(size=x.shape) if path[1] == "mean" else rng.uniform(0.3, 2, x.shape))
        for path, x in mutable.items()
    }
    mutable = flax.traverse_util.unflatten_dict(
        {path: value.astype(np.float32) for path, value in mutable.items()}
    )
    loss = quick_jit(lambda v, batch: system.loss("model", v, batch, jax.random.key(0), 0, ()))
    sample = quick_jit(lambda v, batch: system.sample(v, batch, jax.random.key(0)))
    return system, Vars(params, mutable, {}), loss, sample


def in_torch(torch, variables):
    """Builds the C-DSVAE judge in torch with these weights; it takes frames (N, T, 3, H, W) in [0, 1]."""
    nn = torch.nn
    tree, stats = variables.params["model"], variables.mutable

    class Judge(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = [3, 4, 8, 16, 32]
            convs = [nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(sizes)]
            self.convs = nn.ModuleList([*convs, nn.Conv2d(32, 6, 4, 1, 0)])
            self.norms = nn.ModuleList([nn.BatchNorm2d(n) for n in (*sizes[1:], 6)])
            self.lstm = nn.LSTM(6, 5, bidirectional=True, batch_first=True)
            self.heads = nn.ModuleDict(
                {
                    name: nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, classes))
                    for name, classes in LABELS
                }
            )

        def forward(self, video):
            x = video.flatten(0, 1)
            for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
                x = norm(conv(x))
                x = torch.tanh(x) if i == 4 else nn.functional.leaky_relu(x, 0.2)
            x = self.lstm(x.reshape(*video.shape[:2], 6))[0]
            x = torch.cat([x[:, -1, :5], x[:, 0, 5:]], dim=1)
            return {name: head(x) for name, head in self.heads.items()}

    net, state = Judge(), {}
    for i in range(5):
        conv, norm = tree[f"conv_{i}"], tree[f"norm_{i}"]
        state[f"convs.{i}.weight"] = conv["kernel"].transpose(3, 2, 0, 1)
        state[f"convs.{i}.bias"] = conv["bias"]
        state[f"norms.{i}.weight"], state[f"norms.{i}.bias"] = norm["scale"], norm["bias"]
        state[f"norms.{i}.running_mean"] = stats[f"norm_{i}"]["mean"]
        state[f"norms.{i}.running_var"] = stats[f"norm_{i}"]["var"]
        state[f"norms.{i}.num_batches_tracked"] = np.int64(0)
    for name, end in (("forward", ""), ("backward", "_reverse")):
        cell = tree[name]
        state[f"lstm.weight_ih_l0{end}"] = np.concatenate(
            [cell[f"i{gate}"]["kernel"].T for gate in "ifgo"]
        )
        state[f"lstm.weight_hh_l0{end}"] = np.concatenate(
            [cell[f"h{gate}"]["kernel"].T for gate in "ifgo"]
        )
        state[f"lstm.bias_hh_l0{end}"] = np.concatenate(
            [cell[f"h{gate}"]["bias"] for gate in "ifgo"]
        )
        state[f"lstm.bias_ih_l0{end}"] = np.zeros(20, np.float32)  # torch has two biases
    for name, _ in LABELS:
        for layer, part in ((0, "in"), (2, "out")):
            dense = tree[f"{name}_{part}"]
            state[f"heads.{name}.{layer}.weight"] = dense["kernel"].T
            state[f"heads.{name}.{layer}.bias"] = dense["bias"]
    net.load_state_dict(
        {key: torch.from_numpy(np.array(value)) for key, value in state.items()}, strict=True
    )
    return net


@pytest.mark.oracle
def test_network_loss_and_statistics_equal_torch(judge):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    _, variables, loss, sample = judge
    batch, net = random_batch(), in_torch(torch, variables)
    video = torch.from_numpy(batch["video"]).float().permute(0, 1, 4, 2, 3) / 255
    labels = {key: torch.from_numpy(x.copy()).long() for key, x in labels_of(batch).items()}

    with torch.no_grad():  # in evaluation: running statistics
        expected = {key: x.softmax(-1).numpy() for key, x in net.eval()(video).items()}
    got = sample(variables, batch)
    assert list(expected) == [name for name, _ in LABELS]
    for name, p in expected.items():
        np.testing.assert_allclose(got[name], p, atol=1e-4, err_msg=name)
        assert np.std(p, axis=0).max() > 1e-2

    with torch.no_grad():  # in training: statistics of the batch
        logits = net.train()(video)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = sum(cross_entropy(x, labels[name]) for name, x in logits.items())
    value, out = loss(variables, batch)
    assert float(value) == pytest.approx(float(expected), rel=1e-4)
    for name, x in logits.items():
        accuracy = float((x.argmax(-1) == labels[name]).float().mean())
        assert float(out.metrics[f"accuracy/{name}"]) == accuracy
    for i, side in enumerate((32, 16, 8, 4, 1)):
        norm, count = net.norms[i], CLIPS * 3 * side * side
        updated, before = out.mutable[f"norm_{i}"], variables.mutable[f"norm_{i}"]
        np.testing.assert_allclose(updated["mean"], norm.running_mean, atol=1e-4)
        # torch keeps the unbiased variance, which is n / (n - 1) times the variance that flax keeps.
        var = (norm.running_var.numpy() - 0.9 * before["var"]) * (count - 1) / count
        np.testing.assert_allclose(updated["var"], 0.9 * before["var"] + var, rtol=1e-3, atol=1e-4)


def test_statistics_of_training_are_used_in_evaluation_only(judge):
    _, variables, loss, sample = judge
    batch = random_batch()
    fresh = variables._replace(mutable=systems.build(TINY).init_mutable())
    assert all(np.all(stats["mean"] == 0) for stats in fresh.mutable.values())
    assert all(np.all(stats["var"] == 1) for stats in fresh.mutable.values())
    np.testing.assert_array_equal(loss(fresh, batch)[0], loss(variables, batch)[0])
    assert np.abs(sample(fresh, batch)["action"] - sample(variables, batch)["action"]).max() > 1e-2
    one = {name: value[:1] for name, value in batch.items()}
    alone, together = sample(variables, one)["hair"], sample(variables, batch)["hair"]
    np.testing.assert_allclose(alone[0], together[0], atol=1e-5)


def test_probabilities_and_bytes_or_floats(judge):
    _, variables, _, sample = judge
    batch = random_batch()
    outputs = sample(variables, {"video": batch["video"]})
    for name, classes in LABELS:
        assert outputs[name].shape == (CLIPS, classes)
        np.testing.assert_allclose(np.sum(outputs[name], axis=-1), 1, rtol=1e-5)
    floats = sample(variables, {"video": batch["video"].astype(np.float32) / 255})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), floats, outputs)


def test_labels_and_the_expected_batch(judge):
    system, _, _, _ = judge
    batch = random_batch()
    labels = labels_of(batch)
    assert [(name, 9 if name == "action" else 6) for name in labels] == list(LABELS)
    np.testing.assert_array_equal(labels["action"], batch["action"])
    # Attributes are in the data's order: skin, pants, top, hair.
    for i, name in enumerate(("skin", "pants", "top", "hair")):
        np.testing.assert_array_equal(labels[name], batch["attributes"][:, i])
    check_batch(system, batch, CLIPS)
    with pytest.raises(ConfigError, match="video: "):
        check_batch(system, {**batch, "video": batch["video"][:, :2]}, CLIPS)


def test_bfloat16_gives_float32_probabilities(judge):
    _, variables, _, sample = judge
    half = systems.build({**TINY, "compute": "bfloat16"})
    video = {"video": random_batch()["video"]}
    got = quick_jit(lambda v: half.sample(v, video, jax.random.key(0)))(variables)
    for name, p in sample(variables, video).items():
        assert got[name].dtype == jnp.float32
        np.testing.assert_allclose(got[name], p, atol=0.1)
