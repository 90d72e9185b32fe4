"""VidTwin's ablations in the system: which latents are drawn and diverge, what one latent allows, two steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit, random_like

from vidmotion import encode, evaluation, reenact, system
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.metric_writer import read_metrics
from vidmotion.models.vidtwin_ablations import ABLATIONS
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.train import train

LETTERS = tuple("abcd")
CLIPS = {
    name: np.random.default_rng(seed).integers(0, 256, (2, 4, 16, 16, 3)).astype(np.uint8)
    for seed, name in enumerate(("content", "motion"))
}


@functools.cache
def made(letter):
    """Returns the debug config's system without adversary, and random variables."""
    section = load_config(f"vidtwin:debug,ablation={letter}").system
    section.gan.weight = 0.0
    built = system.build(section)
    params = random_like(jax.eval_shape(built.init, jax.random.key(0), None), scale=0.2)
    return built, system.Vars(params, {}, {})


@pytest.mark.parametrize("letter", LETTERS)
def test_the_recipe_builds_its_network(letter):
    full, small = (load_config(f"vidtwin:{text}ablation={letter}") for text in ("", "debug,"))
    for config in (full, small):
        assert type(system.build(config.system).net) is ABLATIONS[letter]
    assert "ablation" not in load_config("vidtwin").system


@pytest.mark.parametrize("letter", LETTERS)
def test_what_diverges_is_what_is_drawn(letter):
    built, vars = made(letter)
    built = dataclasses.replace(built, network={**built.network, "dropout": 0.0})
    loss = quick_jit(
        lambda key: built.loss("model", vars, {"video": CLIPS["motion"]}, key, jnp.int32(0), None)
    )
    (value, out), (other, _) = loss(jax.random.key(0)), loss(jax.random.key(1))
    want = {"a": {"kl/structure"}, "c": {"kl/structure", "kl/dynamics"}}.get(letter, set())
    assert {name for name in out.metrics if name.startswith("kl/")} == want
    assert float(out.metrics["kl"]) == pytest.approx(sum(float(out.metrics[k]) for k in want))
    whole = out.metrics["nll"] + built.kl_weight * out.metrics["kl"]
    assert float(value) == pytest.approx(float(whole), rel=1e-6)
    assert (float(value) != float(other)) == bool(want)


def test_one_latent_returns_the_content():
    built, vars = made("a")
    assert built.parts == () and built.evaluators() == ("reconstruction",) and not built.window
    sample = quick_jit(lambda batch: built.sample(vars, batch, jax.random.key(0))["video"])
    rebuilt = sample({"content": CLIPS["content"], "motion": CLIPS["content"]})
    np.testing.assert_array_equal(sample(CLIPS), rebuilt)
    assert set(built.read(vars, {"video": CLIPS["content"]})) == {"structure"}
    assert "dynamics none" in built.facts(vars.params)["latents of a clip"]
    for part in ("structure", "dynamics"):
        with pytest.raises(ConfigError, match=f"part='{part}': choose both"):
            built.sample(vars, CLIPS, jax.random.key(0), part=part)


@pytest.mark.parametrize("letter", "bcd")
def test_two_latents_cross(letter):
    built, vars = made(letter)
    sample = quick_jit(lambda batch: built.sample(vars, batch, jax.random.key(0))["video"])
    crossed = sample(CLIPS)
    for name in CLIPS:
        assert np.abs(crossed - sample(dict.fromkeys(CLIPS, CLIPS[name]))).max() > 1e-3
    read = built.read(vars, {"video": CLIPS["motion"]})
    shapes = {name: x.shape[1:] for name, x in read.items()}
    assert shapes == {"structure": built.net.structure_shape, "dynamics": built.net.dynamics_shape}
    codes = built.read_codes(vars, CLIPS)
    assert codes["motion"].shape == (2, 4, np.prod(built.net.dynamics_shape[1:]))


def test_what_does_not_fit_is_refused(tmp_path):
    config = load_config("vidtwin:debug,ablation=a")
    assert {name for name in config.evals if config.evals[name].every >= 0} == {"reconstruction"}
    run = Run(config, str(tmp_path), abstract=True)
    with pytest.raises(ConfigError, match=r"can be evaluated by reconstruction$"):
        evaluation.build("swap", run)
    with pytest.raises(ConfigError, match="holds a run of vidtwin, which cannot transfer motion"):
        reenact.reenact(run, "a.png", "b.mp4", "c.mp4")
    with pytest.raises(
        ConfigError, match="a VidTwin with a single latent, so there are no dynamics to store"
    ):
        encode.VidTwinLatents.source(run, "train", 0)
    section = config.system.to_dict()
    with pytest.raises(ConfigError, match="structure_from='other': with"):
        system.build({**section, "structure_from": "other"})
    with pytest.raises(ConfigError, match="ablation='e': choose a, b, c, d"):
        system.build({**section, "ablation": "e"})
    with pytest.raises(ConfigError, match="place_width"):  # a field of another ablation
        system.build({**section, "network": {**section["network"], "place_width": 32}})


@pytest.mark.slow
@pytest.mark.parametrize("letter", LETTERS)
def test_two_steps(letter, tmp_path, unoptimised, one_device):
    config = load_config(f"vidtwin:debug,ablation={letter}")
    config.sample.rows = 0
    assert train(config, str(tmp_path)) == EXIT_DONE
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss/model" in row]
    assert len(rows) == 2 and all(np.isfinite(row["loss/model"]) for row in rows)
    assert (tmp_path / "eval.json").stat().st_size > 0
