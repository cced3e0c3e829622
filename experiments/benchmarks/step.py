# SPDX-License-Identifier: Apache-2.0
"""Whole training steps of base and big, one improvement after the other, and PyTorch's beside them.

The batch has 25,000 source and 25,000 target positions in rows of 64, all of them real tokens, one
sentence a row: PyTorch then needs no matrix of masks, and can take its fastest way. Dropout as in the
paper, Adam, label smoothing 0.1, bfloat16 computation over float32 weights.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from attention_kernels import layer_norm
from jax.sharding import Mesh

from configs import base, big
from experiments.benchmarks.programs import JaxProgram, TorchProgram, torch_device
from experiments.benchmarks.rows import Entry, Row
from transformer_jax.config import Config, resolve
from transformer_jax.data.batch import EOS, Batch, Tokens
from transformer_jax.flops import flops_of_step
from transformer_jax.training.step import TrainState, initial_state, make_train_step

KIND = "step"
LENGTH = 64
_TOKENS = 25_000  # of a batch, a side: section 5.1
_CHUNK = 2_048

# Attention, layer norm, tokens whose logits exist at once (0: all of them).
STAGES = {
    "naive": ("xla", "xla", 0),
    "chunked loss": ("xla", "xla", _CHUNK),
    "+ attention kernel": ("pallas", "xla", _CHUNK),
    "+ attention kernel, Mosaic": ("mosaic_gpu", "xla", _CHUNK),
    "+ fused layer norm": ("pallas", "pallas", _CHUNK),
    "+ fused layer norm, Mosaic": ("mosaic_gpu", "pallas", _CHUNK),
}

_SMOKE = ("naive", "+ fused layer norm", "+ fused layer norm, Mosaic")
PEERS = ["PyTorch", "PyTorch, compiled"]


@contextlib.contextmanager
def chosen(layer_norm_implementation: str) -> Iterator[None]:
    """Within it, what is traced has this fused end of a sublayer."""
    choice = mock.Mock(return_value=layer_norm_implementation)
    with mock.patch.object(layer_norm, "choose_layer_norm", choice):
        yield


def rows(smoke: bool) -> list[Row]:
    """Base, then big; in a smoke test, which shrinks them to the same size, base in fewer stages."""
    found = []
    models = (("base", base),) if smoke else (("base", base), ("big", big))
    stages = [stage for stage in STAGES if not smoke or stage in _SMOKE]
    for name, config in models:
        run = config.get_config("tiny" if smoke else "")
        run.model.dtype = "bfloat16"
        count = 4 if smoke else -(-_TOKENS // LENGTH)
        length = 16 if smoke else LENGTH
        batch = functools.partial(make_batch, count, length, run.model.vocab_size)
        positions = count * length
        flops = flops_of_step(resolve(run).model, source=positions, target=positions)
        facts = {
            "flops": {KIND: flops},
            "tokens": 2 * positions,
            "peers": PEERS,
        }
        entries = functools.partial(_entries, resolve(run), batch, stages)
        found.append(Row(f"step of {name}", facts, entries, turn=0.3))
    return found


def make_batch(rows: int, length: int, vocabulary: int) -> Batch:
    """Random sentences, one a row, that fill their rows."""
    rng = np.random.default_rng(0)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))

    def side() -> Tokens:
        ids = rng.integers(EOS + 2, vocabulary, (rows, length)).astype(np.int32)
        ids[:, -1] = EOS
        return Tokens(ids, np.ones((rows, length), np.int32), positions)

    return Batch(side(), side(), np.arange(rows, dtype=np.int32))


def _entries(run: Config, batch: Callable[[], Batch], stages: Sequence[str]) -> list[Entry]:
    arrays = jax.tree.map(jnp.asarray, batch())
    axes, kinds = ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((1, 1, 1), axes, kinds, devices=jax.devices()[:1])
    state = initial_state(run, mesh)
    entries = [
        Entry(
            stage,
            KIND,
            functools.partial(_ours, run, mesh, state, arrays, *STAGES[stage]),
            _loss_of_ours,
        )
        for stage in stages
    ]
    for name in PEERS:
        make = functools.partial(_torch, run, arrays, "compiled" in name)
        entries.append(Entry(name, KIND, make, lambda outputs: {"loss": float(outputs[0])}))
    return entries


def _ours(
    run: Config,
    mesh: Mesh,
    state: TrainState,
    batch: Batch,
    attention: str,
    fused_norm: str,
    chunk: int,
) -> JaxProgram:
    """The step of `training/step.py`; every step goes on from the last one's state."""
    run = dataclasses.replace(
        run,
        train=dataclasses.replace(run.train, logits_chunk=chunk),
        model=dataclasses.replace(run.model, attention_implementation=attention),
    )
    own = jax.tree.map(jnp.copy, state)  # the step takes its state's memory for the next
    with chosen(fused_norm):
        return JaxProgram(
            make_train_step(run, mesh),
            own,
            batch,
            following=lambda outputs, arguments: (outputs[0], arguments[1]),
        )


def _loss_of_ours(outputs: Any) -> dict[str, float]:
    _, sums = outputs
    return {"loss": float(sums.loss / sums.tokens)}


def _torch(run: Config, batch: Batch, compiled: bool) -> TorchProgram:
    """Marian of Hugging Face, which is the paper's model, with autocast and fused Adam."""
    import torch
    from torch.nn import functional

    from experiments.benchmarks.torch_marian import make_model

    device = torch_device()
    if compiled and device == "cpu":
        raise NotImplementedError("PyTorch without CUDA is not compiled")
    torch.manual_seed(0)
    model = make_model(dataclasses.asdict(run.model)).to(device).train()
    options = run.optimizer
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=1e-7,  # of the first steps of a warm-up; the schedule is not what is timed
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        fused=device == "cuda",
    )
    source, target = (
        torch.from_numpy(np.array(side.ids, np.int64)).to(device)
        for side in (batch.source, batch.target)
    )
    shifted = functional.pad(target[:, :-1], (1, 0), value=0)

    def loss() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16):
            logits = model(input_ids=source, decoder_input_ids=shifted).logits
            return functional.cross_entropy(
                logits.flatten(0, 1), target.flatten(), label_smoothing=run.train.label_smoothing
            )

    forward = torch.compile(loss) if compiled else loss

    def step() -> torch.Tensor:
        value = forward()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    # Weights and Adam's two moments; gradients come and go within the step.
    holds = 3 * sum(parameter.nbytes for parameter in model.parameters())
    return TorchProgram([step], holds=holds)
