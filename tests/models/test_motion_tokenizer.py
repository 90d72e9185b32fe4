"""The moving-average codebook by hand, and the tokenizer's convolutions against plain torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from quick import quick_jit, random_like

from vidmotion.models.motion_tokenizer import MotionTokenizer
from vidmotion.models.quantizer import EmaQuantizer

TINY = dict(channels=5, entries=6, dim=2, width=8)


def fresh(net, z):
    return net.init(jax.random.key(0), z)["codebook"]


@pytest.fixture(scope="module")
def train():
    def run(net, book, z, key):
        return net.apply({"codebook": book}, z, key, mutable=["codebook"])

    return quick_jit(run, static_argnums=0)


def book_of(entries, counts, decay=0.99):
    """Returns the state of a codebook in balance: every entry is the mean of its vectors."""
    entries, counts = np.float32(entries), np.float32(counts)
    return dict(
        entries=entries, sums=entries * counts[:, None], counts=counts, started=np.array(True)
    )


# -- codebook -------------------------------------------------------------------------------------


def test_averages_by_hand(train):
    net = EmaQuantizer(entries=3, dim=1, decay=0.75)
    book = book_of([[0.0], [10.0], [20.0]], [4.0, 2.0, 8.0])
    z = np.float32([[[1.0], [2.0]], [[11.0], [21.0]]])
    coded, new = train(net, book, z, jax.random.key(0))
    np.testing.assert_array_equal(coded.ids_bt, [[0, 0], [1, 2]])
    # Entries before the update.
    np.testing.assert_array_equal(coded.z_btd, [[[0], [0]], [[10], [20]]])
    new = new["codebook"]
    # 0.75 * 4 + 0.25 * 2, 0.75 * 2 + 0.25, 0.75 * 8 + 0.25
    np.testing.assert_allclose(new["counts"], [3.5, 1.75, 6.25])
    # 0.75 * 0 + 0.25 * 3, 0.75 * 20 + 0.25 * 11, 0.75 * 160 + 0.25 * 21
    np.testing.assert_allclose(new["sums"], [[0.75], [17.75], [125.25]])
    np.testing.assert_allclose(new["entries"], [[0.75 / 3.5], [17.75 / 1.75], [125.25 / 6.25]])
    assert coded.commitment == pytest.approx((1 + 4 + 1 + 1) / 4)
    # Shares of 1/2, 1/4 and 1/4 have an entropy of 1.5 bits.
    assert coded.perplexity == pytest.approx(2**1.5)


def test_an_entry_that_is_not_used_moves_to_a_vector_of_the_batch(train):
    net = EmaQuantizer(entries=3, dim=1, decay=0.5)
    book = book_of([[0.0], [10.0], [99.0]], [4.0, 4.0, 1.9])
    z = np.float32([[[1.0], [2.0], [11.0], [12.0]]])
    seen = set()
    for seed in range(8):
        _, new = train(net, book, z, jax.random.key(seed))
        new = new["codebook"]
        np.testing.assert_allclose(new["counts"], [3.0, 3.0, 0.95])  # the last count is below 1
        np.testing.assert_allclose(new["entries"][:2], [[0.5 * 3 / 3], [0.5 * 63 / 3]])
        assert float(new["entries"][2, 0]) in {1.0, 2.0, 11.0, 12.0}
        seen.add(float(new["entries"][2, 0]))
    assert len(seen) > 1  # drawn anew for each key
    _, new = train(net, book_of([[0.0], [10.0], [99.0]], [4.0, 4.0, 2.0]), z, jax.random.key(0))
    # An entry with a count of 1 stays.
    np.testing.assert_allclose(new["codebook"]["entries"][2], 99.0)


def test_the_first_batch_fills_the_codebook(train):
    net = EmaQuantizer(entries=4, dim=2)
    z = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    coded, new = train(net, fresh(net, z), z, jax.random.key(1))
    flat = z.reshape(-1, 2)
    # Before the update the entries are four vectors of the batch, so these four have distance zero.
    gaps = np.abs(np.asarray(coded.z_btd).reshape(-1, 2) - flat).max(axis=-1)
    assert np.sum(gaps < 1e-6) == 4
    assert len(np.unique(coded.ids_bt)) == 4
    assert bool(new["codebook"]["started"])
    counts = np.bincount(np.ravel(coded.ids_bt), minlength=4)
    np.testing.assert_allclose(new["codebook"]["counts"], 0.99 + 0.01 * counts, rtol=1e-6)


def test_few_vectors_fill_a_large_codebook_with_near_copies(train):
    net = EmaQuantizer(entries=50, dim=2, least=0.0)
    z = np.float32([[[0.0, 3.0], [5.0, -5.0]]])
    _, new = train(net, fresh(net, z), z, jax.random.key(1))
    entries = np.asarray(new["codebook"]["entries"])
    gaps = np.abs(entries[:, None] - z[0][None]).max(axis=-1).min(axis=-1)
    assert np.all(gaps < 0.04) and len(np.unique(entries, axis=0)) == 50


def test_evaluation_changes_nothing_and_ids_give_the_values(train):
    net = EmaQuantizer(entries=3, dim=2)
    book = book_of(np.random.default_rng(0).normal(size=(3, 2)), [2.0, 2.0, 2.0])
    z = np.random.default_rng(1).normal(size=(2, 4, 2)).astype(np.float32)
    coded, new = train(net, book, z, None)
    jax.tree.map(np.testing.assert_array_equal, new["codebook"], book)
    nearest = np.sum((z[:, :, None] - book["entries"]) ** 2, axis=-1).argmin(axis=-1)
    np.testing.assert_array_equal(coded.ids_bt, nearest)
    embedded = net.apply({"codebook": book}, coded.ids_bt, method="embed")
    np.testing.assert_allclose(coded.z_btd, embedded, atol=1e-6)


def test_gradient_passes_straight_through_and_the_commitment_pulls():
    net = EmaQuantizer(entries=3, dim=2)
    book = book_of(np.random.default_rng(0).normal(size=(3, 2)), [2.0, 2.0, 2.0])
    z, weight = np.random.default_rng(1).normal(size=(2, 2, 4, 2)).astype(np.float32)

    @quick_jit
    def slopes(z):
        def parts(z):
            coded = net.apply({"codebook": book}, z)
            return jnp.sum(coded.z_btd * weight), coded.commitment

        return jax.grad(lambda z: parts(z)[0])(z), jax.grad(lambda z: parts(z)[1])(z)

    through, pull = slopes(z)
    np.testing.assert_array_equal(through, weight)
    chosen = net.apply({"codebook": book}, z).z_btd
    np.testing.assert_allclose(pull, 2 * (z - chosen) / z.size, atol=1e-6)


def test_averages_are_those_of_the_whole_batch(train):
    net = EmaQuantizer(entries=3, dim=2)
    book = book_of(np.random.default_rng(0).normal(size=(3, 2)), [2.0, 2.0, 2.0])
    z = np.random.default_rng(1).normal(size=(8, 4, 2)).astype(np.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    cut = jax.device_put(z, NamedSharding(mesh, PartitionSpec("data")))
    whole, spread = (train(net, book, x, jax.random.key(2))[1]["codebook"] for x in (z, cut))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, spread)


# -- tokenizer ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny():
    net = MotionTokenizer(**TINY)
    rng = np.random.default_rng(0)
    motion = rng.normal(size=(2, 16, 5)).astype(np.float32)
    tree = jax.eval_shape(net.init, jax.random.key(0), motion)
    standard = dict(mean=np.float32([1, 2, 3, 4, 5]), deviation=np.float32([1, 2, 1, 2, 4]))
    book = book_of(rng.normal(size=(6, 2)), np.full(6, 2.0))
    variables = {"params": random_like(tree["params"]), "standard": standard}
    return net, {**variables, "codebook": {"quantizer": book}}, motion


def test_convolutions_equal_torch(tiny):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    functional = torch.nn.functional
    net, variables, motion = tiny
    p = variables["params"]

    def conv(layer, x, **how):
        kernel = torch.tensor(np.asarray(layer["kernel"]).transpose(2, 1, 0).copy())
        return functional.conv1d(x, kernel, torch.tensor(np.asarray(layer["bias"])), **how)

    def residual(stack, x):
        for i, dilation in enumerate((9, 3, 1)):
            y = functional.relu(x)
            y = conv(stack[f"dilated_{i}"], y, padding=dilation, dilation=dilation)
            x = x + conv(stack[f"mix_{i}"], functional.relu(y))
        return x

    standard = variables["standard"]
    x = torch.tensor(((motion - standard["mean"]) / standard["deviation"]).transpose(0, 2, 1))
    x = functional.relu(conv(p["encoder_in"], x, padding=1))
    for i in range(2):
        x = residual(p[f"encoder_{i}"], conv(p[f"down_{i}"], x, stride=2, padding=1))
    z = conv(p["encoder_out"], x, padding=1).numpy().transpose(0, 2, 1)
    entries = variables["codebook"]["quantizer"]["entries"]
    ids = np.sum((z[:, :, None] - entries) ** 2, axis=-1).argmin(axis=-1)
    assert ids.shape == (2, 4) and len(np.unique(ids)) > 1
    x = functional.relu(
        conv(p["decoder_in"], torch.tensor(entries[ids].transpose(0, 2, 1)), padding=1)
    )
    for i in range(2):
        x = functional.interpolate(residual(p[f"decoder_{i}"], x), scale_factor=2, mode="nearest")
        x = conv(p[f"up_{i}"], x, padding=1)
    x = functional.relu(conv(p["decoder_mid"], x, padding=1))
    want = conv(p["decoder_out"], x, padding=1).numpy().transpose(0, 2, 1)

    @quick_jit
    def run(variables, motion, ids):
        decoded = net.apply(variables, ids, method="decode")
        return net.apply(variables, motion), decoded, net.apply(variables, motion, method="encode")

    got, decoded, encoded = run(variables, motion, ids)
    np.testing.assert_array_equal(got.ids_bu, ids)
    np.testing.assert_array_equal(encoded, ids)
    np.testing.assert_allclose(got.reconstruction_btc, want, atol=1e-4)
    scaled = want * standard["deviation"] + standard["mean"]
    np.testing.assert_allclose(decoded, scaled, atol=1e-3)
    standardised = (motion - standard["mean"]) / standard["deviation"]
    np.testing.assert_allclose(got.target_btc, standardised, atol=1e-6)


def test_the_paper_has_32_tokens_of_128_frames():
    net = MotionTokenizer()
    motion = jax.ShapeDtypeStruct((1, 128, 512), jnp.float32)
    out, variables = jax.eval_shape(lambda m: net.init_with_output(jax.random.key(0), m), motion)
    assert out.ids_bu.shape == (1, 32)
    assert out.reconstruction_btc.shape == (1, 128, 512)
    assert variables["codebook"]["quantizer"]["entries"].shape == (4096, 8)


def test_frames_that_do_not_divide_are_refused(tiny):
    net, variables, motion = tiny
    with pytest.raises(ValueError, match="frames a multiple of 4"):
        net.apply(variables, motion[:, :6])
