# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmarks on a CPU, at tiny sizes: they run, they see what is wrong, they lose nothing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import attention, ceilings, gpu, loss, rows, step, tables
from experiments.benchmarks.report import describe_machine
from experiments.benchmarks.results import Results
from transformer_jax.model import on_mesh

ROOT = Path(__file__).parents[2]
NOT_HERE = ("Mosaic", "mosaic_gpu", "cuDNN", "tokamax", "PyTorch", "Flax", "jax.nn")  # may refuse


def new_results(folder) -> Results:
    about = {
        "device": "CPU",
        "driver": None,
        "smoke": True,
        "command": "a test",
        "machine": describe_machine(),
        "versions": {"jax": jax.__version__},
    }
    results = Results(folder / "gpu_cpu.json", about)
    results.save()
    return results


def timed(row):
    """Seconds and notes by (contestant, kind), of those who served."""
    return {
        (contestant, kind): found
        for contestant, kinds in row["results"].items()
        for kind, found in kinds.items()
        if "refused" not in found
    }


@pytest.mark.parametrize(
    "benchmark", [ceilings, attention, loss, pytest.param(step, marks=pytest.mark.slow)]
)
def test_every_benchmark_runs(benchmark, tmp_path):
    name = benchmark.__name__.split(".")[-1]
    results = new_results(tmp_path)
    planned = benchmark.rows(smoke=True)
    results.plan(name, [(row.name, row.facts) for row in planned])
    for row in planned:
        rows.measure(results, name, row, seconds=60)
        found = results.data["rows"][row.name]
        assert found["state"] == "done"
        served = timed(found)
        assert served and all(of["seconds"]["median"] > 0 for of in served.values())
        refused = {
            contestant: of["refused"]
            for contestant, kinds in found["results"].items()
            for of in kinds.values()
            if "refused" in of
        }
        for contestant, why in refused.items():
            assert any(of in contestant for of in NOT_HERE), f"{contestant}: {why}"
        for (contestant, kind), of in served.items():
            assert of.get("error", 0.0) < 0.01 and of.get("gradient_error", 0.0) < 0.02, contestant
            assert kind in found["facts"].get("flops", {kind: 1})
        losses = [of["loss"] for (contestant, _), of in served.items() if contestant in step.STAGES]
        np.testing.assert_allclose(losses, losses[:1] * len(losses), rtol=2e-3)
        if benchmark is attention:
            assert {("pallas", "forward"), ("pallas", "forward+backward")} <= set(served)
            assert "error" in served["pallas", "forward"]
    report = results.path.with_suffix(".md").read_text()
    assert f"| {planned[0].name} |" in report and "Missing" not in report


@pytest.mark.parametrize("benchmark", [ceilings, attention, loss, step])
def test_rows_have_names_of_their_own(benchmark):
    names = [row.name for row in benchmark.rows(smoke=False)]
    assert len(set(names)) == len(names)


def test_a_wrong_output_has_a_large_error():
    """The control: one head's gradient is that of another, one entry is not a number."""
    inputs = attention.Inputs.of(attention.SMOKE[0])
    right = [jnp.asarray(array) for array in inputs.expected]
    assert inputs.errors("any", [right]) == {"error": 0.0, "gradient_error": 0.0}
    wrong = [*right[:3], right[3][:, :, ::-1]]
    assert inputs.errors("any", [wrong])["gradient_error"] > 0.1
    position = np.argwhere(np.asarray(inputs.segments) > 0)[0]
    nan = [right[0].at[tuple(position)].set(jnp.nan), *right[1:]]
    assert inputs.errors("any", [nan])["error"] == np.inf


def test_a_stage_runs_what_it_names():
    arrays = [jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)), jnp.ones(3), jnp.zeros(3)]
    options = {"rate": 0.0, "eps": 1e-6, "rng": None}
    with step.chosen("pallas"):
        kernel = jax.make_jaxpr(lambda *of: on_mesh.dropout_add_layer_norm(*of, **options))(*arrays)
    xla = jax.make_jaxpr(lambda *of: on_mesh.dropout_add_layer_norm(*of, **options))(*arrays)
    assert "layer_norm_forward" in str(kernel) and "layer_norm_forward" not in str(xla)


def test_who_hangs_or_dies_is_left_out_and_the_others_are_measured(tmp_path):
    """Five processes' work: two rows are measured in the end, one was there from an earlier run."""
    results = new_results(tmp_path)
    results.plan("faulty_benchmark", [("two", {})])
    before = {"good": {"call": {"seconds": {"median": 7.0, "min": 7.0, "max": 7.0}}}}
    results.data["rows"]["two"] |= {"state": "done", "results": before}
    results.save()
    end = time.monotonic() + 100
    results = gpu.run_benchmark(results, "tests.experiments.faulty_benchmark", end, end)
    found = results.data["rows"]
    assert [found[name]["state"] for name in ("one", "two", "three")] == ["done"] * 3
    assert found["two"]["results"] == before, "a row that is there is not measured again"
    for name in ("one", "three"):
        of = {contestant: kinds["call"] for contestant, kinds in found[name]["results"].items()}
        assert "no answer within 3 s, in one" in of["hangs"]["refused"]
        assert "its process died" in of["dies"]["refused"]
        assert of["refuses"]["refused"] == "NotImplementedError: not on / this device"
        assert of["good"]["seconds"]["median"] > 0 and of["good"]["error"] == -1.0


def test_a_benchmark_that_cannot_start_is_a_line_of_the_report(tmp_path):
    end = time.monotonic() + 60
    results = gpu.run_benchmark(new_results(tmp_path), "tests.experiments.no_such", end, end)
    report = results.path.with_suffix(".md").read_text()
    assert "Not measured: tests.experiments.no_such, its process died: ModuleNotFound" in report


def test_without_time_rows_are_missing_and_not_lost(tmp_path):
    results = new_results(tmp_path)
    results.plan("faulty_benchmark", [("one", {}), ("two", {})])
    results.begin("faulty_benchmark", "one")
    # An interruption here: another process finds the row to be done again.
    again = Results.load(results.path)
    assert again.is_open("one") and again.is_open("two")
    assert "Missing: one (running); two (not reached)." in again.path.with_suffix(".md").read_text()
    # Nobody in hand when the process died: the row is at fault, and not tried again.
    again.settle(None, "its process died")
    assert not Results.load(results.path).is_open("one")


def test_the_tables_say_what_was_measured():
    def took(seconds, **notes):
        return {"seconds": {"median": seconds, "min": seconds, "max": 2 * seconds}, **notes}

    data = {
        "device": "NVIDIA H200",
        "driver": "580",
        "smoke": False,
        "command": "a test",
        "machine": {"commit": "abc", "date": "2026-11-26T00:00:00"},
        "versions": {"jax": "0.11.2"},
        "clocks": {"before": [{}], "during step": [{"sm": "1980 MHz"}, {"sm": "345 MHz"}]},
        "rows": {
            ceilings.PRODUCT: {
                "benchmark": "ceilings",
                "facts": {"flops": {"call": 8e12}},
                "state": "done",
                "results": {"XLA": {"call": took(0.01)}},
            },
            "step of base": {
                "benchmark": "step",
                "facts": {"flops": {"step": 9.6e12}, "tokens": 50_000, "peers": ["PyTorch"]},
                "state": "done",
                "results": {
                    "naive": {"step": took(0.03, loss=10.5)},
                    "Mosaic": {"step": {"refused": "not here"}},
                    "PyTorch": {"step": took(0.045)},
                },
            },
        },
    }
    report = tables.report(data)
    # 9.6 T in 30 ms are 320 TFLOP/s, 40 % of the product's 800; 45 ms are 1.5 times 30.
    line = "| step of base | naive | 30 (30 to 60) | 320 | 1,666,667 | 40.0% | 1.50 | 10.5 |"
    assert line in report
    assert (
        "- Mosaic: not here (1 of 1)" in report and "during step: sm 345 MHz to 1980 MHz" in report
    )


def test_a_device_has_a_file_of_its_own():
    assert gpu.slug("NVIDIA H200") == "h200"
    assert gpu.slug("NVIDIA H100 80GB HBM3") == "h100_80gb_hbm3"


def test_without_a_gpu_the_command_says_so(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", f"--output={tmp_path}"]
    environment = os.environ | {"PATH": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 2 and "nvidia-smi shows no GPU; --smoke" in run.stderr


@pytest.mark.slow
def test_the_command_runs_everything(tmp_path):
    command = [sys.executable, "-m", "experiments.benchmarks.gpu", "--smoke"]
    environment = os.environ | {"PATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    options = [f"--output={tmp_path}", "--seconds=300"]
    subprocess.run([*command, *options], check=True, cwd=ROOT, env=environment)
    data = json.loads((tmp_path / "gpu_cpu.json").read_text())
    assert {row["benchmark"] for row in data["rows"].values()} == set(gpu.SHARES)
    assert all(row["state"] == "done" for row in data["rows"].values())
    # With --resume there is nothing left to do, and what there is stays.
    subprocess.run([*command, *options, "--resume"], check=True, cwd=ROOT, env=environment)
    assert json.loads((tmp_path / "gpu_cpu.json").read_text())["rows"] == data["rows"]
