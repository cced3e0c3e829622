# SPDX-License-Identifier: Apache-2.0
"""The translator's compiled functions: one batch at a time, whose rows the devices of a mesh share."""

from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Integer

from transformer_jax.data.batch import PAD, Tokens
from transformer_jax.inference.beam_search import BeamResult, beam_search
from transformer_jax.inference.devices import by_rows
from transformer_jax.inference.sampling import line_keys, sample
from transformer_jax.model.decoding import SearchWeights

Params = Any  # the model's weights, nested by module and parameter name


@partial(jax.jit, static_argnames=("structure", "precision"))
def make_search_weights(
    params: Params, *, structure: nnx.GraphDef, precision: str | None
) -> SearchWeights | list[SearchWeights]:
    """A model's weights for a search, or each one's of an ensemble; see model/decoding.py."""
    return nnx.merge(structure, params).search_weights(precision)


@partial(jax.jit, static_argnames=("structure", "length", "mesh", "beam_size", "results"))
def translate_batch(
    params: Params,
    source: Tokens,
    limits: Int[Array, " B"],
    prefix: Int[Array, "B P"] | None,
    alpha: Float[Array, ""],
    min_length: Int[Array, ""] | None,
    *,
    weights: Any,  # of the model, see search_weights
    structure: nnx.GraphDef,
    length: int,
    mesh: Mesh | None,
    beam_size: int,
    results: int,
) -> BeamResult:
    """The best hypotheses of each row; compiled once for every shape of a batch."""

    def search(shared: Any, rows: Any) -> BeamResult:
        (params, weights, alpha, min_length), (source, limits, prefix) = shared, rows
        model = nnx.merge(structure, params)
        cross = model.read_source(source, weights)
        # Translations are about as long as their sources; the few that are longer get more room.
        short = min(length, source.ids.shape[1] + 8)
        return beam_search(
            lambda ids, position, cache, context: model.decode_step(
                ids, position, cache, *context, weights
            ),
            model.empty_cache(limits.shape[0], beam_size, short),
            beam_size=beam_size,
            max_lengths=limits,
            length=length,
            alpha=alpha,
            results=results,
            prefix=prefix,
            min_length=min_length,
            never=(PAD,),  # a softmax has it, but no translation
            context=(cross, source.segments),
            cache_axis=3,
        )

    return by_rows(search, mesh, (params, weights, alpha, min_length), (source, limits, prefix))


@partial(jax.jit, static_argnames=("structure", "length", "mesh", "top_k", "samples"))
def sample_batch(
    params: Params,
    source: Tokens,
    limits: Int[Array, " B"],
    prefix: Int[Array, "B P"] | None,
    alpha: Float[Array, ""],
    min_length: Int[Array, ""] | None,
    randomness: tuple[Array, Array, Array | None],
    numbers: Integer[Array, " B"],
    *,
    weights: Any,
    structure: nnx.GraphDef,
    length: int,
    mesh: Mesh | None,
    top_k: int,
    samples: int,
) -> BeamResult:
    """Samples of each row, by its line's number; `randomness` is (seed, temperature, top_p)."""

    def draw(shared: Any, rows: Any) -> BeamResult:
        params, weights, alpha, min_length, (seed, temperature, top_p) = shared
        source, limits, prefix, numbers = rows
        model = nnx.merge(structure, params)
        cross = model.read_source(source, weights)
        return sample(
            lambda ids, position, cache: model.decode_step(
                ids, position, cache, cross, source.segments, weights
            ),
            model.empty_cache(limits.shape[0], samples, length),
            keys=line_keys(seed, numbers),
            samples=samples,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_lengths=limits,
            length=length,
            alpha=alpha,
            prefix=prefix,
            min_length=min_length,
            never=(PAD,),
        )

    return by_rows(
        draw,
        mesh,
        (params, weights, alpha, min_length, randomness),
        (source, limits, prefix, numbers),
    )
