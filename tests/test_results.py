"""The results page holds what the run records hold, and nothing else."""

import functools
import importlib
import importlib.util
import json
import re
import types
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from configs.sweeps import Claim
from vidmotion.open_run import load_config

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"


def load():
    spec = importlib.util.spec_from_file_location("results_build", RESULTS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_built_from_the_records():
    assert (RESULTS / "README.md").read_text() == load().build()


def test_a_record_keeps_its_numbers_and_the_papers_are_labelled():
    record = {
        "devices": 2,
        "device_kind": "chip",
        "platform": "tpu",
        "steps_done": 1234,
        "steps_planned": 5000,
        "step_seconds": 0.25,
        "model_tflops": 1.5,
        "mfu": 0.4321,
        "data_wait_share": 0.015,
        "peak_memory": {"process_bytes": 2**30, "device_bytes": 3 * 2**30},
        "commit": "a" * 40 + "+changes",
        "libraries": {"jax": "0.10.2"},
        "config": {"batch_size": 32},
        "results": [
            {
                "metric": "cross_driven/hair",
                "value": 0.9,
                "convention": "c",
                "weights": "w",
                "resolution": "64x64",
                "n": 7,
            },
            {
                "metric": "fid",
                "value": None,
                "convention": "needs weights",
                "weights": "none",
                "resolution": "64x64",
                "n": 0,
            },
        ],
    }
    text = "\n".join(load().describe("run", record))
    for part in ("1,234 / 5,000", "0.250", "1.500", "43.2%", "1.50%", "3.00 GiB (device)"):
        assert part in text
    assert "aaaaaaaaaaaa+changes" in text
    assert "| cross_driven/hair | 0.9000 | 1.0000 (Table A1) | 7 | c; weights: w; 64x64 |" in text
    assert "| fid | not computed |  | 0 |" in text


def test_links_of_the_pages_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", RESULTS / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)


def test_the_benchmarks_page_is_built_from_its_records():
    page = RESULTS / "benchmark.md"
    assert page.exists() == (RESULTS / "records" / "benchmark").is_dir()
    assert not page.exists() or page.read_text() == load().benchmark()


def test_the_page_of_claims_is_built_from_its_records():
    assert (RESULTS / "claims.md").read_text(encoding="utf-8") == load().claims()


def test_a_claim_is_judged_by_the_interval_of_its_paired_differences():
    """Student's t of two degrees of freedom at 95 % is 4.3027, as tables have it."""
    build = load()
    low, high = build.interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == (
        pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-4),
        pytest.approx(4.4842, abs=1e-4),
    )
    claim = Claim("it helps", "Table 1", "psnr", "with it", "without")
    sweep = types.SimpleNamespace(SEEDS=(0, 1, 2), CLAIMS=(claim,))

    def judged(more, less):
        records = {
            f"{name}_{seed}": {"results": [{"metric": "psnr", "value": value}]}
            for name, values in (("with_it", more), ("without", less))
            for seed, value in enumerate(values)
        }
        return build._judged(sweep, records)[0]

    # The differences are 1, 1.1 and .9, whose deviation is .1 and interval 1 +- .248.
    apart = judged((18.0, 19.1, 16.9), (17.0, 18.0, 16.0))
    assert apart[3:] == ["with it 18.00", "without 17.00", "+1.00 [0.75, 1.25]", "3", "holds"]
    assert judged((17.0, 18.0, 16.0), (18.0, 19.1, 16.9))[-1] == "does not hold"
    assert judged((17.0, 19.0, 16.0), (16.0, 20.0, 16.0))[-1] == "not decided here"
    assert judged((18.0,), (17.0,))[-2:] == ["1", "not decided here"]
    assert judged((), ())[-2:] == ["0", "not run"]


@pytest.mark.parametrize("system", ["bcd", "vidtwin", "xnemo", "warpface"])
def test_claims_compare_runs_that_their_sweep_makes(system):
    sweep = importlib.import_module(f"configs.sweeps.claims_{system}")
    changes = vars(sweep).get("CHANGES", {})
    for claim in sweep.CLAIMS:
        assert {claim.better, claim.worse} <= set(sweep.ARGUMENTS)
    assert set(changes) <= set(sweep.ARGUMENTS)
    for name, argument in sweep.ARGUMENTS.items():
        config = load_config(f"{ROOT / sweep.CONFIG}:{argument}")
        for field, value in {**sweep.OVERRIDES, **changes.get(name, {})}.items():
            *sections, last = field.split(".")
            section = functools.reduce(ml_collections.ConfigDict.__getitem__, sections, config)
            section[last] = (
                value  # a field that is not there, or a value of another type, is refused
            )


def test_the_benchmark_puts_systems_side_by_side():
    record = {
        "devices": 1,
        "device_kind": "chip",
        "platform": "tpu",
        "steps_done": 200,
        "step_seconds": 0.5,
        "model_tflops": 0.25,
        "peak_memory": {"process_bytes": 2**30},
        "commit": "b" * 40,
        "parameters": {"model": 7_100_000, "disc": 5},
        "config": {"batch_size": 8, "data": {"common": {"fps": 2.0}}},
        "results": [
            {"metric": "psnr/swap", "value": 17.25},
            {"metric": "numbers_per_frame/motion", "value": 16},
            {"metric": "probe/identity_from_motion/mlp/accuracy", "value": 0.25},
            {"metric": "probe/identity_from_motion/mlp/accuracy/low", "value": 0.2},
            {"metric": "probe/identity_from_motion/mlp/accuracy/high", "value": 0.3},
            {"metric": "psnr/copy_content", "value": 14.0},
            {"metric": "psnr/copy_motion", "value": 11.0},
            {"metric": "ssim/copy_content", "value": 0.4},
            {"metric": "ssim/copy_motion", "value": 0.3},
        ],
    }
    text = "\n".join(load()._side_by_side("heads", {"bcd": record, "xnemo": record}))
    # 200 steps of 0.5 s at 0.25 TFLOP/s
    assert "| X-NeMo | 7.10 M | 200 x 8 | 25.0 | 0.50 | 1.00 GiB (process) | bbbbbbbbbbbb |" in text
    assert "| system | swap |" in text and "| BCD | 17.25 |" in text
    assert "| copy of the content | 14 |" in text and "| copy of the driver | 11 |" in text
    assert "| X-NeMo | 16 | 32 |" in text  # per frame, and per second at two frames a second
    assert "| BCD | 0.25 [0.2, 0.3] |" in text
    assert "reader" not in text  # nothing of it was measured


def test_figures_of_the_readme_are_those_of_the_records_they_link_to():
    """Each number with decimals before a link to a record must be one of that record's results, rounded."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"([^|;]*?)\(\[(\w+)\]\(docs/results/README\.md#\2\)\)", text)
    assert len(found) > 5
    for claim, name in found:
        files = (RESULTS / "records" / f"{name}.json", load().SHIPPED / f"{name}.json")
        record = json.loads(next(file for file in files if file.exists()).read_text())
        values = [row["value"] for row in record["results"] if row["value"] is not None]
        figures = re.findall(r"\d+\.\d+", claim)
        assert figures, claim
        for figure in figures:
            places = len(figure.partition(".")[2])
            assert figure in {f"{value:.{places}f}" for value in values}, (claim, name)


def test_protocols_become_a_table_each_and_say_what_is_missing(tmp_path):
    row = {"convention": "c", "resolution": "64x64", "n": 7, "note": "", "weights": "none"}
    record = {
        "clips": 7,
        "commit": "b" * 40,
        "devices": 2,
        "device_kind": "cpu",
        "platform": "cpu",
        "processes": 2,
        "results": [
            {**row, "metric": "psnr", "value": 12.34567},
            {**row, "metric": "fvd", "value": None, "note": "not computed: needs X"},
        ],
    }
    file = tmp_path / "bcd_motion_transfer.json"
    file.write_text(json.dumps(record))
    text = "\n".join(load().protocols([file]))
    assert "### bcd motion transfer" in text
    assert "2 x cpu (cpu) in 2 processes, commit bbbbbbbbbbbb, 7 clips." in text
    assert "| psnr | 12.3457 | 7 | c | 64x64 |" in text
    assert "| fvd | not computed | 7 | c | 64x64 |" in text
    assert text.count("not computed: needs X") == 1
