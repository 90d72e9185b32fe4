"""The stock transformer encoder against torch's."""

import jax
import numpy as np
import pytest
from quick import quick_jit

from vidmotion.models.transformer import TransformerEncoder

WIDTH, HEADS, MLP_DIM, LAYERS = 16, 4, 24, 2


@pytest.mark.oracle
def test_equals_torch():
    torch = pytest.importorskip("torch")
    layer = torch.nn.TransformerEncoderLayer(WIDTH, HEADS, MLP_DIM, dropout=0.0, batch_first=True)
    torch.manual_seed(0)
    theirs = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}

    def dense(key):
        return {"kernel": state[f"{key}.weight"].T, "bias": state[f"{key}.bias"]}

    def norm(key):
        return {"scale": state[f"{key}.weight"], "bias": state[f"{key}.bias"]}

    params = {}
    for i in range(LAYERS):
        of = f"layers.{i}"
        kernels = np.split(state[f"{of}.self_attn.in_proj_weight"], 3)
        biases = np.split(state[f"{of}.self_attn.in_proj_bias"], 3)
        params[f"layer_{i}"] = {
            name: {"kernel": kernel.T, "bias": bias}
            for name, kernel, bias in zip(("query", "key", "value"), kernels, biases)
        } | {
            "out": dense(f"{of}.self_attn.out_proj"),
            "attention_norm": norm(f"{of}.norm1"),
            "mlp_in": dense(f"{of}.linear1"),
            "mlp_out": dense(f"{of}.linear2"),
            "mlp_norm": norm(f"{of}.norm2"),
        }
    x = np.random.default_rng(0).normal(size=(2, 5, WIDTH)).astype(np.float32)
    net = TransformerEncoder(LAYERS, HEADS, MLP_DIM)
    want = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, want)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(quick_jit(net.apply)({"params": params}, x), expected, atol=2e-5)
