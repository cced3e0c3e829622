# SPDX-License-Identifier: Apache-2.0
"""What a run would need, without data and without a run folder: `main --dry_run`."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from transformer_jax.collectives import bytes_of_collectives
from transformer_jax.config import Config
from transformer_jax.data.batch import Batch, Tokens
from transformer_jax.data.batching import row_lengths, rows_of_batch
from transformer_jax.errors import UserError
from transformer_jax.flops import flops_of_step
from transformer_jax.training.sharding import batch_sharding, batch_ways
from transformer_jax.training.step import abstract_state, make_train_step


def compile_step(config: Config, mesh: Mesh, rows: int, length: int) -> jax.stages.Compiled:
    """The step for batches [rows, length]; the mesh may be of devices that are not here."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))

    tokens = Tokens(*(array(rows, length) for _ in range(3)))
    batch = Batch(tokens, tokens, array(rows))
    step: Any = make_train_step(config, mesh)
    return step.lower(abstract_state(config, mesh), batch).compile()


def bytes_needed(memory: Any) -> int:
    """What a device holds during a step, of a compiled step's memory analysis."""
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def batch_shapes(config: Config, mesh: Mesh) -> list[tuple[int, int]]:
    """(rows, positions) of the run's batches, the longest rows last."""
    multiple = batch_ways(mesh) * config.train.accumulate
    return [
        (rows_of_batch(config.data.batch_tokens, length, multiple), length)
        for length in row_lengths(config.data.max_length)
    ]


def dry_run(config: Config, mesh: Mesh) -> str:
    """Compile the step for the batches with the longest rows, and say what it takes.

    Raises:
      UserError: it does not fit the memory of a device.
    """
    shapes = batch_shapes(config, mesh)
    rows, length = max(shapes, key=lambda shape: (shape[0] * shape[1], shape[1]))
    compiled = compile_step(config, mesh, rows, length)
    memory = compiled.memory_analysis()
    if memory is None:
        raise UserError(f"{mesh.devices.flat[0]} does not say what memory a step needs")
    needed, there = bytes_needed(memory), _bytes_of_device(mesh)
    if needed > there:
        raise UserError(
            f"a step needs {needed / 1e9:.2f} GB on each device and there are {there / 1e9:.2f} GB; "
            "raise config.train.accumulate, set config.train.remat=True or "
            "config.train.logits_chunk=2048, or split the weights with config.mesh.fsdp"
        )
    weights = jax.tree.leaves(abstract_state(config, mesh).params)
    flops = flops_of_step(config.model, source=rows * length, target=rows * length)
    lines = [
        ("mesh", ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())),
        ("parameters", f"{sum(math.prod(leaf.shape) for leaf in weights):,}"),
        ("batches", ", ".join(f"{rows} x {length}" for rows, length in shapes) + " a side"),
        ("compiled for", f"{rows} x {length}"),
        ("FLOPs a step", f"{flops:.4g}, without attention's scores"),
        ("memory a device", f"{needed / 1e9:.3f} GB of {there / 1e9:.3f} GB"),
        ("of it temporary", f"{memory.temp_size_in_bytes / 1e9:.3f} GB"),
    ]
    if mesh.size > 1:
        found = bytes_of_collectives(compiled.as_text() or "", mesh.size)
        lines += [
            (f"{of.kind} of {of.group}", f"{size / 1e6:.3f} MB a step")
            for of, size in found.items()
        ]
    return "\n".join(f"{name:24} {value}" for name, value in lines)


def _bytes_of_device(mesh: Mesh) -> int:
    """A device's memory; virtual devices share that of the machine."""
    device = mesh.local_devices[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)
