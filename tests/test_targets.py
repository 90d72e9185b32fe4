"""Compilers for chips that this machine lacks: what is refused, and, where one is installed, what it makes of an
update."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import _shared
from vidmotion import targets
from vidmotion.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
COMPILERS = {"v5e": "libtpu", "h100": "jax_cuda12_plugin"}


def want(**changes):
    made = _shared.trunk().plan
    made.update(changes)
    return made


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 0),
        ({"devices": 8}, 8),
        ({"chip": "v5e", "topology": "16x16"}, 256),
        ({"chip": "v5p", "topology": "4x4x4", "devices": 64}, 64),
    ],
)
def test_a_topology_counts_devices(changes, count):
    assert targets.device_count(want(**changes)) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": -1}, "a number of devices, or 0"),
        ({"chip": "abacus"}, "'abacus' is not known; choose from v4, v5e"),
        ({"topology": "2x2"}, "shape of a TPU slice; for h100 give config.plan.devices"),
        ({"chip": "v5e", "topology": "2by2"}, "sides of a TPU slice in chips, such as 2x2"),
        ({"chip": "v5e", "topology": "2x2", "devices": 8}, "has 4 devices; set only one"),
        ({"devices": 8, "compiler": "gcc"}, "choose chip or cpu"),
    ],
)
def test_bad_input_is_one_sentence(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        targets.find(want(**changes))
    assert "\n" not in str(caught.value)


def present(monkeypatch, *names):
    """Pretends that these packages, and no other compilers, are installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in names else None)
    monkeypatch.setattr(targets, "_version", lambda platform: platform)


@pytest.mark.parametrize(("chip", "extra"), [("v5e", "aot-tpu"), ("h100", "aot-gpu")])
def test_without_the_package_the_cpu_forecasts_and_says_so(monkeypatch, chip, extra):
    present(monkeypatch)
    said = []
    monkeypatch.setattr(targets.log, "warning", lambda text, *values: said.append(text % values))
    target = targets.find(want(chip=chip, devices=8))
    assert (target.platform, target.own, target.compiler) == ("cpu", False, "XLA for the CPU")
    assert len(said) == 1 and extra in said[0] and chip in said[0]


def test_gpus_fill_whole_servers():
    with pytest.raises(ConfigError, match=r"config\.plan\.devices=12: a server holds 8 of h100"):
        targets._gpus("h100", 12)


def test_a_slice_needs_its_shape(monkeypatch):
    present(monkeypatch, "libtpu")
    with pytest.raises(
        ConfigError, match="topology is missing: give the shape of the slice of v5e"
    ):
        targets.find(want(chip="v5e", devices=4))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "ABORTED: Internal error when accessing libtpu multi-process lockfile. "
            'Run "$ sudo rm /tmp/libtpu_lockfile".',
            "libtpu_lockfile is held by another process; wait until that ends",
        ),
        (
            'INVALID_ARGUMENT: Topology layout "v5e:3x5" is not divisible by the given (or default) '
            'chips_per_host_bounds "2x2x1"',
            "topology=3x5 is not a slice of v5e",
        ),
    ],
)
def test_what_libtpu_refuses_is_one_sentence(monkeypatch, said, message):
    def refuse(**_):
        raise jax.errors.JaxRuntimeError(said)

    present(monkeypatch, "libtpu")
    monkeypatch.setattr(targets.topologies, "get_topology_desc", refuse)
    with pytest.raises(ConfigError, match=message) as caught:
        targets.find(want(chip="v5e", topology="3x5"))
    assert "\n" not in str(caught.value)


def planned(tmp_path, config, *changes):
    """Returns the record of a plan, which the command makes in a process of its own."""
    record = tmp_path / "plan.json"
    command = [sys.executable, "-m", "vidmotion.main", "--mode=plan", f"--config={config}"]
    command += [f"--config.plan.{change}" for change in (*changes, f"record={record}")]
    # The eight devices and the cache of the test suite are not for this process.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    subprocess.run(command, check=True, cwd=ROOT, env=clean, capture_output=True, timeout=900)
    return json.loads(record.read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("chip", "slice"), [("v5e", "topology=2x2"), ("h100", "devices=4")])
def test_the_chips_own_compiler_answers(tmp_path, chip, slice):
    if not importlib.util.find_spec(COMPILERS[chip]):
        pytest.skip(f"the compiler of {chip} is not installed: {COMPILERS[chip]}")
    plan = planned(tmp_path, "sprites:debug", f"chip={chip}", slice, "fit=False")
    assert plan["own_compiler"] and plan["compiler"].startswith(COMPILERS[chip])
    assert plan["fits"]
    assert plan["plan_devices"] == 4
    # The gradients of all parameters, in float32, are summed over four devices, and a few metrics in addition. The
    # GPU's compiler sums them in shares, after whose update the parameters are gathered; the TPU's sums small ones
    # whole.
    sent = plan["parameter_bytes"] * 3 / 4
    moved = plan["moved_bytes"]
    if chip == "h100":
        assert sum(moved.values()) == pytest.approx(2 * sent, rel=0.06)
    else:
        assert moved["all-reduce"] == pytest.approx(2 * sent, rel=0.06)
    assert 0 < moved["all-gather"] < sent
    assert plan["arguments_bytes"] >= plan["state_bytes"]
    assert plan["kernels"]["product"] > 50
    if chip == "v5e":
        assert sum(plan["cycles_by_module"].values()) <= plan["cycles"]
        assert plan["seconds"]["cycles"] == pytest.approx(plan["cycles"] / 1.5e9)
