"""Every recipe: its arguments, what it builds, and two steps of its smallest variant from end to end."""

import json
import math
from pathlib import Path

import jax
import pytest
import quick
from ml_collections import ConfigDict

from configs import _shared, benchmark
from vidmotion import evaluation, paths
from vidmotion.checkpoint import Checkpointer
from vidmotion.errors import EXIT_DONE, ConfigError
from vidmotion.evaluation.sprites_judge import trained_judge
from vidmotion.metric_writer import read_metrics
from vidmotion.open_run import load_config
from vidmotion.run import Run
from vidmotion.system import fingerprint
from vidmotion.train import train

FOLDER = Path(_shared.__file__).parent
NAMES = sorted(
    path.stem for path in FOLDER.glob("*.py") if path.stem not in {"__init__", "_shared"}
)


def options(name):
    """Returns {argument: its values, the default first}, as the config gives them to `_shared.parse`."""
    asked, parse = [], _shared.parse

    def spy(argument, *variants, **known):
        asked.append(known)
        return parse(argument, *variants, **known)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shared, "parse", spy)
        load_config(name)
    return asked[0]


VARIANTS = ("", "demo", "debug")
ARGUMENTS = {
    name: [
        (f"{key}={value}", value == values[0])
        for key, values in options(name).items()
        for value in values
    ]
    for name in NAMES
}


def test_the_recipes_are_found():
    assert {"sprites", "heads", "lrs3", "lrs3_gpt", "sprites_judge"} <= set(NAMES)
    assert ("content_frames=15", False) in ARGUMENTS["lrs3"]


@pytest.mark.parametrize("name", NAMES)
def test_no_two_sections_are_one_object(name):
    """If two sections were one object, a change to one, also from the command line, would change both."""
    sections = [load_config(f"{name}:demo")]
    for section in sections:
        sections += [part for part in section.values() if isinstance(part, ConfigDict)]
    assert len({id(section) for section in sections}) == len(sections)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_variant_builds_its_run(name, variant):
    config = load_config(f"{name}:{variant}")
    run = Run(config, "", abstract=True)
    state = run.abstract_state  # applies every path rule to every leaf
    assert jax.tree.leaves(state.params)
    for evaluator in config.evals:
        evaluation.build(evaluator, run)
    if variant == "debug":
        assert config.steps == 2
    json.loads(config.to_json())


@pytest.mark.parametrize("name", [name for name in NAMES if ARGUMENTS[name]])
def test_only_the_default_of_an_argument_changes_nothing(name):
    plain = {variant: load_config(f"{name}:{variant}").to_json() for variant in VARIANTS}
    for k, (argument, default) in enumerate(ARGUMENTS[name]):
        chosen = {
            variant: load_config(f"{name}:{','.join(filter(None, (variant, argument)))}")
            for variant in VARIANTS
        }
        same = [chosen[variant].to_json() == plain[variant] for variant in VARIANTS]
        assert all(same) if default else not all(same), argument
        # Each argument builds with one variant, which changes in turn.
        Run(chosen[VARIANTS[k % 3]], "", abstract=True)


@pytest.mark.parametrize("name", ["heads", "vidtwin", "warpface", "xnemo"])
def test_the_minis_are_demos_small_enough_to_ship(name):
    mini, demo = (load_config(f"{name}:{variant}") for variant in ("mini", "demo"))
    assert mini.data.train.clips >= demo.data.train.clips
    assert mini.system.codec == demo.system.codec
    flat = paths.flatten(Run(mini, "", abstract=True).abstract_params["model"])
    rules = mini.optimizer.model.get("trainable", ((".*", True),))
    learnt = paths.flatten(paths.assign(rules, paths.unflatten(flat)))
    assert sum(2 * leaf.size for path, leaf in flat.items() if learnt[path]) <= 6 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_unknown_arguments_are_refused(name):
    for argument in ("huge", "demo=1", "debug,colour=red", "demo,debug"):
        with pytest.raises(ValueError, match="choose from demo, debug"):
            load_config(f"{name}:{argument}")


def test_the_sizes_that_the_spec_expects():
    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6

    lrs3 = Run(load_config("lrs3"), "", abstract=True).abstract_params["model"]
    # T5 of 12 layers: attention 4 x 512 x 512, feed-forward 2 x 512 x 2048; the stem 4096 x 512.
    assert count(lrs3["encoder"]) == pytest.approx(37.7 + 2.1, rel=0.03)
    assert count(lrs3["quantizer"]) == pytest.approx((64 * 32 * 16 + 1024**2) / 1e6)
    gpt = Run(load_config("lrs3_gpt"), "", abstract=True).abstract_params["model"]
    assert count(gpt["trunk"]) == pytest.approx(151.3, abs=0.05)


def test_the_codes_have_one_folder_and_one_length():
    config = load_config("lrs3_gpt:debug")
    config.update_from_flattened_dict({"system.codes": "elsewhere", "system.frames": 3})
    assert config.data.common.directory == "elsewhere" and config.data.common.frames == 3


# -- two steps ------------------------------------------------------------------------------------


def assert_complete(workdir, results=(), pictures=()):
    """Checks that the workdir holds a complete run of two steps, with these evaluation results and samples."""
    with Checkpointer(workdir, read_only=True) as checkpointer:
        assert checkpointer.steps() == [2]
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "loss/model" in row]
    losses = {row["step"]: row["loss/model"] for row in rows}
    assert set(losses) == {1, 2} and all(map(math.isfinite, losses.values()))
    assert json.loads((workdir / "record.json").read_text())["steps_done"] == 2
    for name in pictures:
        for suffix in ("png", "mp4", "gif"):
            assert (workdir / "samples" / f"{name}.{suffix}").stat().st_size > 0
    if results:
        rows = json.loads((workdir / "eval.json").read_text())["results"]
        values = {row["metric"]: row["value"] for row in rows}
        assert set(results) <= set(values) and all(math.isfinite(values[name]) for name in results)


def test_heads(heads_run):
    results = ("psnr/swap", "ssim/swap", "psnr/copy_content", "bits_per_frame/hard")
    assert_complete(heads_run, results, ["transfer-2"])


@pytest.mark.slow
def test_vidtwin(tmp_path, unoptimised):
    assert train(load_config("vidtwin:debug"), str(tmp_path)) == EXIT_DONE
    results = ("psnr/reconstruction", "ssim/mean_frame", "rate", "psnr/swap", "psnr/copy_motion")
    assert_complete(tmp_path, results, ["transfer-2", "parts-2"])


@pytest.mark.slow
def test_lrs3(tmp_path, unoptimised):
    assert train(load_config("lrs3:debug"), str(tmp_path)) == EXIT_DONE
    assert_complete(tmp_path, pictures=["transfer-2"])


@pytest.mark.slow
def test_lrs3_gpt(heads_run, heads_codes, tmp_path, unoptimised):
    config = load_config("lrs3_gpt:debug")
    config.system.codes = str(heads_codes)
    config.evals.motion_generation.bcd = str(heads_run)
    assert train(config, str(tmp_path)) == EXIT_DONE
    assert_complete(tmp_path, ("cross_entropy", "perplexity", "histogram_distance"), ["generated"])


def of_sheets(name, sheets_dir):
    config = load_config(f"{name}:debug")
    config.data.common.sheets_dir = str(sheets_dir)
    return config


@pytest.fixture(scope="module")
def judge(sheets_dir, tmp_path_factory):
    """Returns the workdir of a judge of Sprites."""
    workdir = tmp_path_factory.mktemp("judge")
    with quick.unoptimised():
        assert train(of_sheets("sprites_judge", sheets_dir), str(workdir)) == EXIT_DONE
    return workdir


@pytest.mark.slow
def test_sprites_judge(judge, heads_run, monkeypatch):
    assert_complete(judge)
    _, vars, identity = trained_judge(str(judge), "it.judge")
    assert identity == fingerprint(vars.params)[:12]
    assert trained_judge("", "it.judge") is None
    with pytest.raises(ConfigError, match=r"it\.judge='.*' holds a run of 'bcd'"):
        trained_judge(str(heads_run), "it.judge")
    monkeypatch.setattr(Checkpointer, "steps", lambda self: [1])
    with pytest.raises(ConfigError, match="trained for 1 of 2 steps"):
        trained_judge(str(judge), "it.judge")


@pytest.mark.slow
def test_sprites(sheets_dir, judge, tmp_path, unoptimised):
    config = of_sheets("sprites", sheets_dir)
    config.evals.sprites_transfer.judge = str(judge)
    assert train(config, str(tmp_path)) == EXIT_DONE
    results = ("cross_driven/action", "cross_driven/hair", "psnr/true_sprite")
    assert_complete(tmp_path, results, ["transfer-2"])
    rows = {r["metric"]: r for r in json.loads((tmp_path / "eval.json").read_text())["results"]}
    # Four pairs cannot hold nine actions, so a note says why there is no number.
    assert rows["inception_score"]["value"] is None
    assert rows["inception_score"]["note"].startswith("not computed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "clips"),
    [
        *(
            (system, clips)
            for system in ("bcd", "vidtwin", "warpface")
            for clips in benchmark.CLIPS
        ),
        ("xnemo", "heads"),
        ("xnemo_gan", "sprites"),
    ],
)
def test_the_benchmark_matches_parameters_and_arithmetic(system, clips):
    """6 to 8.5 million parameters are kept after training; FLOPs are those that the compiler counts."""
    config = load_config(f"benchmark:system={system},clips={clips},minutes=2")
    run = Run(config, "", abstract=True)
    kept = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_params["model"]))
    assert 6e6 < kept < 8.5e6
    flops = run.flops_per_step()
    assert flops == pytest.approx(1e9 * benchmark.STEP[clips][system], rel=0.01)
    assert config.steps * flops == pytest.approx(2 * 3e12, rel=0.02)
    # All systems see the same clips, and work on the same numbers.
    assert config.data.common.get("frames", 8) == 8 and config.data.common.get("fps", 2.0) == 2.0
    codec = config.system.get("codec", {})
    assert codec.get("weights", "") == ("heads_codec" if clips == "heads" else "")


def test_the_adversary_costs_the_same_on_all_clips():
    heads, sprites = (
        benchmark.STEP[clips]["xnemo_gan"] - benchmark.STEP[clips]["xnemo"]
        for clips in ("heads", "sprites")
    )
    assert heads == pytest.approx(sprites, abs=0.1)


def test_the_budget_of_the_benchmark():
    longer = load_config("benchmark:system=bcd,hours=1")
    assert longer.steps == round(36e15 / 107.2e9)
    with pytest.raises(ValueError, match="'minutes=0' must be a whole number, 1 or more"):
        load_config("benchmark:minutes=0")
