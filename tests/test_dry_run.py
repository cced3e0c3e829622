# SPDX-License-Identifier: Apache-2.0
"""What a run would need: memory, bytes between devices; and one step of it again."""

import subprocess
from collections import Counter

import jax
import pytest

from tests.processes import ROOT, command, environment
from tests.small_runs import tiny, write_corpus
from transformer_jax import dry_run as module
from transformer_jax.collectives import Collective, bytes_of_collectives, bytes_sent
from transformer_jax.config import MeshConfig, resolve
from transformer_jax.dry_run import batch_shapes, compile_step, dry_run
from transformer_jax.errors import UserError
from transformer_jax.replay import replay
from transformer_jax.run import run_training
from transformer_jax.training.metrics import read_metrics
from transformer_jax.training.sharding import make_mesh
from transformer_jax.training.step import abstract_state


def test_collectives_are_read_from_hlo():
    hlo = """
      %a = (f32[4,2]{1,0}, f32[]) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}, to_apply=%sum
      %b = bf16[8,4]{1,0} all-gather(%z), replica_groups=[2,4]<=[8], dimensions={0}
      %c = f32[2]{0} reduce-scatter(%w), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%sum
      %d = (f32[2]{0}, f32[8]{0}) all-gather-start(%v), replica_groups=[2,4]<=[8]
      %e = f32[8]{0} all-gather-done(%d)
      %f = f32[3]{0} all-reduce(%u), replica_groups={{0},{1}}, to_apply=%sum
      %g = f32[5]{0} collective-permute(%t), source_target_pairs={{0,1},{1,0}}
    """
    found = bytes_of_collectives(hlo, 8)
    assert found == {
        Collective("all-reduce", 2): 36,
        Collective("all-gather", 4): 64 + 32,
        Collective("reduce-scatter", 8): 64,
        Collective("collective-permute", 8): 20,
    }
    assert bytes_sent(found) == 36 + 96 * 3 / 4 + 64 * 7 / 8 + 20


def test_a_collective_that_a_tpu_overlaps_with_fusions_counts_once():
    hlo = """
%fused_computation.1 (a: bf16[2,4]) -> (bf16[2,4], bf16[8,4]) {
  %b = bf16[8,4]{1,0} all-gather(%a), replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
}
%async_collective_fusion.2 (a: bf16[2,4]) -> bf16[8,4] {
  %c = bf16[8,4]{1,0} all-gather(%a), replica_groups=mesh['x'=2,'y'=4] {'y'}, dimensions={0}
}
ENTRY %main (a: bf16[2,4]) -> bf16[8,4] {
  %async-collective-start = (bf16[2,4], bf16[8,4]) fusion(%a), kind=kLoop, calls=%fused_computation.1
  %d = bf16[8,4] fusion(%e), kind=kOutput, calls=%async_collective_fusion.2
  %f = f32[3]{0} all-reduce(%g), replica_groups=mesh['x'=2,'y'=4] {'x'}, to_apply=%sum
}
"""
    assert bytes_of_collectives(hlo, 8) == {
        Collective("all-gather", 4): 64,
        Collective("all-reduce", 2): 12,
    }
    overlapped = bytes_of_collectives(hlo, 8, only_overlapped=True)
    assert overlapped == {Collective("all-gather", 4): 64}


@pytest.mark.parametrize("axis", [pytest.param("data", marks=pytest.mark.slow), "fsdp"])
def test_devices_that_share_a_batch_exchange_weights_and_one_gradient(small_config, axis):
    """4 bytes a parameter to add up a gradient, and where weights are split, as much to gather them.

    The embedding counts once, though source, target and softmax use it; no activation is exchanged.
    """
    run = resolve(small_config)
    mesh = make_mesh(MeshConfig(**{"data": 1, axis: 8}))
    found = bytes_of_collectives(compile_step(run, mesh, 8, 32).as_text(), 8)
    kinds: Counter[str] = Counter()
    for of, size in found.items():
        kinds[of.kind] += size
    leaves = jax.tree.leaves(abstract_state(run, mesh).params)
    weights = 4 * sum(leaf.size for leaf in leaves)
    split = 4 * sum(leaf.size for leaf in leaves if axis in str(leaf.sharding.spec))
    few = 100 + 4 * len(leaves)  # the sums of losses, the norm of each gradient
    assert kinds["all-gather"] == split == kinds["reduce-scatter"]
    assert 0 <= kinds["all-reduce"] - (weights - split) < few
    assert set(kinds) <= {"all-gather", "reduce-scatter", "all-reduce"}
    assert axis == "data" or split > 0.9 * weights


def test_devices_that_share_the_heads_add_up_activations(small_config):
    """As Megatron-LM's layers do, but that XLA adds up one by one what queries, keys and values send back."""
    small_config.model.num_layers = 2
    run = resolve(small_config)
    rows, length = 64, 32
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    found = bytes_of_collectives(compile_step(run, mesh, rows, length).as_text(), 8)
    layers = run.model.num_layers
    encoder = 2 + (3 + 1)  # forward: a sum after each sublayer; backward: before each projection
    decoder = 3 + (3 + 3 + 1)
    ends = 2 + 1  # source and target embedding; the softmax, whose devices take positions
    activation = 4 * rows // mesh.shape["fsdp"] * length * run.model.d_model
    table = 4 * run.model.vocab_size * run.model.d_model
    sent = sum(size for of, size in found.items() if of.group == mesh.shape["tensor"])
    theory = (layers * (encoder + decoder) + ends) * activation + 2 * table
    assert 0.9 * theory < sent < 1.25 * theory


def test_a_dry_run_says_what_a_step_needs_and_refuses_what_does_not_fit(small_config, monkeypatch):
    run = resolve(small_config)
    mesh = make_mesh(run.mesh)
    text = dry_run(run, mesh)
    weights = sum(leaf.size for leaf in jax.tree.leaves(abstract_state(run, mesh).params))
    assert f"{weights:,}" in text and "all-reduce of 8" in text
    for rows, length in batch_shapes(run, mesh):
        assert f"{rows} x {length}" in text
    monkeypatch.setattr(module, "_bytes_of_device", lambda _: 1_000)
    with pytest.raises(UserError, match=r"a step needs .* there are 0\.00 GB; .*remat"):
        dry_run(run, mesh)


def test_main_makes_no_folder_in_a_dry_run_and_replays_a_step(tmp_path):
    config = tiny(write_corpus(tmp_path / "corpus"))
    config.train.num_steps = 6
    config.train.checkpoint_every = 3
    config.train.log_every = 1
    config.data.splits = {"train": "train", "validation": "", "test": ""}
    workdir = tmp_path / "run"

    def main(*flags: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            command(config, workdir, *flags),
            env=environment(), cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    dry = main("--dry_run")
    assert dry.returncode == 0, dry.stderr
    assert "FLOPs a step" in dry.stdout and not workdir.exists()
    with pytest.raises(UserError, match="is no run folder"):
        replay(resolve(config), workdir, 1)
    run_training(resolve(config), workdir)
    with pytest.raises(UserError, match=r"config\.train\.num_steps is 6"):
        replay(resolve(config), workdir, 7)
    (tmp_path / "corpus").rename(tmp_path / "moved")  # the run folder is enough
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    replayed = main("--replay_step=6")
    assert replayed.returncode == 0, replayed.stderr
    assert "steps 4 to 5 are made again" in replayed.stderr
    first, second, *lines = replayed.stdout.splitlines()
    assert first == "step 6, computed from checkpoint 3 on"
    losses = {
        entry["step"]: entry["train/loss"]
        for entry in read_metrics(workdir)
        if "train/loss" in entry
    }
    assert float(second.split()[1]) == pytest.approx(losses[6], rel=1e-5)
    assert all(losses[step] != pytest.approx(losses[6], rel=1e-4) for step in range(1, 6))
    assert before == {
        path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()
    }
    assert any(line.startswith("gradient encoder/0 ") for line in lines)
    corpus = {
        (english, german)
        for english, german in zip(
            (tmp_path / "moved" / "train.en").read_text().splitlines(),
            (tmp_path / "moved" / "train.de").read_text().splitlines(),
            strict=True,
        )
    }
    shown = [line.split(": ", 1)[1].split(" ||| ") for line in lines if line.startswith("row ")]
    assert len(shown) > 10 and all(tuple(pair) in corpus for pair in shown)
