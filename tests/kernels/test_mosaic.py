# SPDX-License-Identifier: Apache-2.0
"""The Mosaic GPU kernels in the GPU interpreter: asynchronous copies, barriers, a detector of races."""

import subprocess
import sys

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_kernels import backends, mosaic_attention
from attention_kernels.options import Inputs
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh

from tests.kernels.test_attention import example, value_and_gradients

interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"),
    reason=f"jax {jax.__version__} has no public interpreter of Mosaic GPU kernels: 0.11 has",
)


@pytest.fixture
def interpreter(monkeypatch):
    """Kernels run in the interpreter instead of being compiled."""
    parameters = plgpu.InterpretGPUParams(detect_races=True)
    monkeypatch.setattr(mosaic_attention, "interpretation", lambda: parameters)
    return parameters


def rounded(arrays, dtype):
    """The example with vectors that both the kernel and the oracle can hold exactly."""
    return *(array.astype(dtype) for array in arrays[:3]), *arrays[3:]


def errors(found, arrays, **options):
    """Of an output and three gradients: norm of the difference to the oracle's, by the oracle's norm."""
    relative = []
    expected = value_and_gradients("reference", arrays, **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        assert np.linalg.norm(theirs) > 0
        relative.append(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    return relative


@interpreted
@pytest.mark.parametrize(
    "queries, keys, k, v, dtype, causal, rate",
    [
        (40, 50, 16, 24, jnp.bfloat16, False, 0.0),  # one tile and one block, padded
        (130, 70, 64, 64, jnp.float16, False, 0.3),  # two groups of two warpgroups
        (70, 300, 64, 64, jnp.bfloat16, True, 0.3),  # blocks that wait for a slot
        (300, 64, 32, 128, jnp.bfloat16, True, 0.3),  # 128 features; several blocks of queries
    ],
)
def test_equals_the_oracle_without_races(
    interpreter, capfd, queries, keys, k, v, dtype, causal, rate
):
    arrays = rounded(example(4, 1, queries, keys, 2, k, v, key_heads=1), dtype)
    options = {"causal": causal, "dropout_rate": rate, "head_offset": 3}
    options |= {"query_offset": jnp.array([20])} if causal else {}
    found = value_and_gradients("mosaic_gpu", arrays, **options)
    tolerance = 2e-3 if dtype == jnp.float16 else 1e-2
    assert max(errors(found, arrays, **options)) < tolerance
    assert "RACE" not in "".join(capfd.readouterr()).upper()
    if rate:  # the control: another head drops other entries
        assert min(errors(found, arrays, **options | {"head_offset": 2})) > 5 * tolerance


@interpreted
def test_padding_gives_zeros_and_no_nan_gradients(interpreter):
    """In the first row no key belongs to a segment; in the second every other query is padding."""
    query, key, value, *_ = rounded(example(0, 2, 70, 50, 1, 16, 16), jnp.bfloat16)
    query_segments = jnp.broadcast_to(jnp.arange(70) % 2, (2, 70))
    key_segments = jnp.broadcast_to(jnp.arange(2)[:, None], (2, 50))
    seen = np.asarray(query_segments * jnp.arange(2)[:, None]) == 1
    out, d_query, d_key, d_value = value_and_gradients(
        "mosaic_gpu", (query, key, value, query_segments, key_segments)
    )
    for array in map(np.asarray, (out, d_query)):
        assert not np.any(array[~seen])
        assert np.all(np.any(array[seen], axis=(1, 2)))
    for array in (np.asarray(array, np.float32) for array in (d_key, d_value)):
        assert np.all(array[0] == 0)
        assert np.all(np.isfinite(array[1])) and np.any(array[1])


@interpreted
def test_a_race_is_seen(interpreter, capfd):
    """The control: a tile that is read before its copy has arrived."""

    def kernel(x, out, tile, arrived):
        plgpu.copy_gmem_to_smem(x, tile, arrived)
        out[...] = tile[...]
        plgpu.barrier_wait(arrived)

    x = jnp.ones((64, 64), jnp.float32)
    run = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(x.shape, x.dtype),
        scratch_types=[plgpu.SMEM(x.shape, x.dtype), plgpu.Barrier()],
        interpret=interpreter,
    )
    try:
        jax.block_until_ready(run(x))
        found = ""
    except jax.errors.JaxRuntimeError as error:  # how newer versions of JAX report it
        found = str(error)
    assert "RACE" in (found + "".join(capfd.readouterr())).upper()


def test_says_what_it_cannot_do(monkeypatch):
    query, key, value, *_ = example(0)
    half = [array.astype(jnp.bfloat16) for array in (query, key, value)]
    with pytest.raises(NotImplementedError, match="kind cpu: wgmma needs a GPU"):
        attention_kernels.attention(*half, implementation="mosaic_gpu")
    monkeypatch.setattr(mosaic_attention, "interpretation", lambda: "never reached")
    with pytest.raises(NotImplementedError, match="dtype float32"):
        attention_kernels.attention(query, key, value, implementation="mosaic_gpu")
    wide = jnp.zeros((1, 8, 1, 160), jnp.bfloat16)
    with pytest.raises(NotImplementedError, match="heads of 160 and 160 features"):
        attention_kernels.attention(wide, wide, wide, implementation="mosaic_gpu")


def test_is_not_chosen_until_it_has_been_timed():
    """On the very GPU that it is for; and who does not ask for it does not import it."""
    device = AbstractDevice("NVIDIA H200", 132, "gpu")
    query, key, value = (array.astype(jnp.bfloat16) for array in example(0)[:3])
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("d",), abstract_device=device)):
        inputs = Inputs(query, key, value, None, None, None)
        assert mosaic_attention.unsupported(inputs, backends.device()) is None
        assert attention_kernels.choose_attention(query, key, value) == "pallas"
    program = (
        "import sys, attention_kernels; sys.exit('attention_kernels.mosaic_tiles' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
