# SPDX-License-Identifier: Apache-2.0
"""On a real GPU: what interpretation and ahead-of-time compilation cannot tell, numerics and races.

make test-gpu
"""

import dataclasses
import functools

import attention_kernels
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from tests.conftest import random_batch
from transformer_jax.config import resolve
from transformer_jax.training.step import initial_state, make_train_step

pytestmark = pytest.mark.gpu

IMPLEMENTATIONS = ["xla", "pallas", "mosaic_gpu"]
# Of the largest value. Our float32 products are three TF32 passes, XLA's a single one; bfloat16 has 8 bits.
TOLERANCES = {"float32": 2e-5, "bfloat16": 2e-2}
XLAS_TOLERANCES = {"float32": 2e-3, "bfloat16": 2e-2}

# Queries, keys, heads, K, V, dtype, causal, dropout: full tiles, ragged ones, several tiles, one query.
CASES = [
    (64, 64, 8, 64, 64, "bfloat16", False, 0.1),
    (128, 128, 8, 64, 64, "bfloat16", True, 0.1),
    (256, 256, 8, 64, 64, "bfloat16", True, 0.1),
    (100, 37, 4, 64, 64, "bfloat16", False, 0.1),
    (5, 200, 3, 64, 64, "bfloat16", False, 0.0),
    (256, 256, 4, 128, 128, "bfloat16", False, 0.1),
    (33, 33, 5, 16, 32, "bfloat16", True, 0.3),
    (2048, 2048, 2, 64, 64, "bfloat16", True, 0.1),
    (1000, 2048, 2, 64, 64, "bfloat16", False, 0.0),
    (64, 64, 8, 64, 64, "float32", True, 0.1),
    (200, 150, 4, 64, 64, "float32", False, 0.1),
    (1, 77, 4, 64, 64, "float32", False, 0.0),
    (2048, 2048, 2, 64, 64, "float32", True, 0.1),
]


@pytest.fixture(autouse=True)
def on_a_gpu():
    if jax.default_backend() != "gpu":
        pytest.skip(f"JAX's backend is {jax.default_backend()}; `make test-gpu` where a GPU is")


def packed(rng, rows, length):
    """Segments of up to four sentences a row, then some padding; one row is padding throughout."""
    segments = np.sort(rng.integers(1, 5, (rows, length)), axis=1).astype(np.int32)
    padding = rng.integers(0, length // 4 + 1, rows)
    segments[np.arange(length) >= length - padding[:, None]] = 0
    segments[-1] = 0
    return jnp.asarray(segments)


def example(case, seed=0):
    """(query, key, value, gradient of the output), and the segments of queries and keys."""
    queries, keys, heads, k, v, dtype, *_ = case
    rng, rows = np.random.default_rng(seed), 3
    vectors = [
        jnp.asarray(rng.normal(size=(rows, length, heads, features)), dtype)
        for length, features in ((queries, k), (keys, k), (keys, v), (queries, v))
    ]
    return vectors, (packed(rng, rows, queries), packed(rng, rows, keys))


@functools.cache
def compiled(implementation, case):
    """A function of vectors, segments, seed and rows' numbers; compiled once."""
    *_, causal, rate = case

    def both(vectors, segments, seed, rows):
        *arrays, d_out = vectors
        function = functools.partial(
            attention_kernels.attention,
            query_segments=segments[0],
            key_segments=segments[1],
            causal=causal,
            dropout_rate=rate,
            dropout_seed=seed,
            row_ids=rows,
            implementation=implementation,
        )
        out, backward = jax.vjp(function, *arrays)
        return out, *backward(d_out)

    return jax.jit(both)


def out_and_gradients(implementation, case, vectors, segments, first_row=5):
    rows = jnp.arange(first_row, first_row + len(segments[0]))
    outputs = compiled(implementation, case)(vectors, segments, jnp.uint32(3), rows)
    return [np.asarray(array.astype(jnp.float32)) for array in outputs]


def expected(case, vectors, segments, **options):
    """The oracle's, in float32, of the same rounded vectors."""
    exact = [array.astype(jnp.float32) for array in vectors]
    return out_and_gradients("reference", case, exact, segments, **options)


def served(implementation, case, vectors, segments):
    """What the implementation computes; the test is skipped if it cannot serve, or is not there."""
    try:
        return out_and_gradients(implementation, case, vectors, segments)
    except NotImplementedError as reason:
        pytest.skip(str(reason))
    except ValueError as error:
        if "known are" not in str(error):
            raise
        pytest.skip(str(error))


def errors(ours, theirs):
    """The largest difference of each array, of the largest value."""
    return [
        np.abs(one - other).max() / np.abs(other).max()
        for one, other in zip(ours, theirs, strict=True)
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_and_gradients(implementation, case):
    vectors, segments = example(case)
    ours = served(implementation, case, vectors, segments)
    theirs = expected(case, vectors, segments)
    tolerances = XLAS_TOLERANCES if implementation == "xla" else TOLERANCES
    assert max(errors(ours, theirs)) < tolerances[case[5]], errors(ours, theirs)
    assert not np.any(ours[0][np.asarray(segments[0]) == 0]), "padding gives zeros"
    if case[-1]:  # the control: other rows' entries are dropped
        others = expected(case, vectors, segments, first_row=6)
        assert min(errors(ours, others)) > 0.1


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[7], CASES[9]], ids=str)
@pytest.mark.parametrize("implementation", ["pallas", "mosaic_gpu"])
def test_a_race_would_move_the_result(implementation, case):
    """Twenty times the same, to the bit."""
    vectors, segments = example(case)
    first = served(implementation, case, vectors, segments)
    for _ in range(20):
        again = out_and_gradients(implementation, case, vectors, segments)
        for one, other in zip(again, first, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(3, 64, 512), (2, 33, 1024), (1, 5, 24)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_fused_end_of_a_sublayer(dtype, shape, rate):
    rng = np.random.default_rng(0)
    x, residual, d_out = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3))
    scale, bias = (jnp.asarray(rng.normal(1, 1, shape[-1:]), jnp.float32) for _ in range(2))

    def both(implementation, x, residual, d_out):
        def function(*arrays):
            return attention_kernels.dropout_add_layer_norm(
                *arrays, rate=rate, seed=jnp.uint32(3), implementation=implementation
            )

        out, backward = jax.vjp(function, x, residual, scale, bias)
        return [np.asarray(array.astype(jnp.float32)) for array in (out, *backward(d_out))]

    ours = both("pallas", x, residual, d_out)
    exact = (array.astype(jnp.float32) for array in (x, residual, d_out))
    assert max(errors(ours, both("xla", *exact))) < TOLERANCES[dtype]


@pytest.mark.parametrize("chunk", [0, 1000, 4096])
def test_cross_entropy(chunk):
    """Of 37,000 words and a number of tokens that chunks do not divide."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (5000, 512), jnp.bfloat16)
    embedding = jax.random.normal(keys[1], (37_000, 512)) * 512**-0.5
    embedding = embedding.astype(jnp.bfloat16).astype(jnp.float32)
    labels = jax.random.randint(keys[2], (5000,), 0, 37_000)

    def ours(x, embedding):
        return attention_kernels.linear_cross_entropy(
            x, embedding, labels, label_smoothing=0.1, chunk=chunk
        ).loss

    def exact(x, embedding):
        log_p = jax.nn.log_softmax(jnp.matmul(x, embedding.T, precision="highest"))
        label = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
        return -jnp.sum(0.9 * label + 0.1 * log_p.mean(axis=-1))

    found, wanted = (
        jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(array, embedding)
        for function, array in ((ours, x), (exact, x.astype(jnp.float32)))
    )
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4)
    pairs = [[np.asarray(of.astype(jnp.float32)) for of in (*pair[1],)] for pair in (found, wanted)]
    assert max(errors(*pairs)) < TOLERANCES["bfloat16"]


def test_base_trains_in_bfloat16():
    """Twenty steps on one batch: the loss falls, and starts where float32's does."""
    config = base.get_config()
    config.model.attention_dropout = 0.1
    config.optimizer.peak_rate, config.optimizer.warmup_steps = 1e-3, 10
    run = resolve(config)
    axes, kinds = ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3
    mesh = jax.make_mesh((1, 1, 1), axes, kinds, devices=jax.devices()[:1])
    batch = random_batch(0, rows=64, source_length=64, target_length=60, vocabulary=37_000)
    losses = {}
    for dtype in ("bfloat16", "float32"):
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, dtype=dtype))
        state, step = initial_state(run, mesh), make_train_step(run, mesh)
        losses[dtype] = []
        for _ in range(20):
            state, sums = step(state, batch)
            losses[dtype].append(float(sums.loss / sums.tokens))
    assert np.all(np.isfinite(losses["bfloat16"]))
    assert losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=1e-2)
    assert losses["bfloat16"][-1] < losses["bfloat16"][0] - 1
    assert losses["bfloat16"][-1] == pytest.approx(losses["float32"][-1], rel=5e-2)
