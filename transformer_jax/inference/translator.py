# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: section 6.1."""

import copy
import logging
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from transformer_jax.config import DecodeConfig
from transformer_jax.data.batch import EOS, Tokens
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.errors import UserError
from transformer_jax.inference.beam_search import beam_search
from transformer_jax.inference.padding import Group, group_by_length, pad
from transformer_jax.model.step import StepWeights
from transformer_jax.model.transformer import Transformer, compute_dtype

log = logging.getLogger(__name__)

Params = Any  # the model's weights, nested by module and parameter name
LINE_BREAKS = re.compile("[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")  # all that str.splitlines knows


class Translator:
    """A model, its vocabulary and how to search.

    Translator.from_workdir("runs/demo").translate(["A dog runs."])
    """

    def __init__(
        self,
        model: Transformer,
        vocabulary: Vocabulary,
        decode: DecodeConfig,
        max_length: int,
        *,
        mesh: Mesh | None = None,
        numbers: str | None = None,
    ):
        """A translator with the model's weights.

        Args:
          model: its weights may be abstract if only `with_params` is used.
          vocabulary: of both languages.
          decode: settings of the search; `translate` may be given others.
          max_length: longer sources, in tokens with EOS, are cut.
          mesh: the devices that share the sentences. None: the one that has the weights.
          numbers: what the decoder multiplies, "float32", "bfloat16" or "int8"; by default what the
            model computes in.
        """
        self.structure, params = nnx.split(model, nnx.Param)
        self.params: Params = nnx.to_pure_dict(params)
        self.vocabulary, self.decode, self.mesh = vocabulary, decode, mesh
        self.max_length = max_length
        self.numbers = numbers or compute_dtype(model.config.dtype).name
        self._made: StepWeights | None = None
        self.step: int | None = None  # after how many training steps, if from_workdir knows
        # A table of learned positions has no rows behind its last.
        learned = model.config.positions == "learned"
        self.longest_output = model.config.max_length if learned else math.inf
        self.batch_tokens = 2048 if jax.default_backend() == "cpu" else 8192

    @classmethod
    def from_workdir(
        cls, workdir: str | Path, checkpoint: str = "latest", *, mesh: Mesh | None = None
    ) -> "Translator":
        """The translator of a run folder.

        Args:
          workdir: the run folder.
          checkpoint: "latest", "best" (by validation BLEU), "average" or a step.
          mesh: the devices that share the sentences, of all processes that make this call. None: all
            devices of this one.

        Raises:
          UserError: no such run folder or checkpoint.
        """
        from transformer_jax import checkpoints  # here: a search alone needs no Orbax

        config, model, step = checkpoints.load_model(workdir, checkpoint)
        path = Path(workdir) / "vocabulary.model"
        vocabulary = Vocabulary.load(path, size=config.model.vocab_size)
        if mesh is None:
            mesh = Mesh(jax.local_devices(), ("data",))
        translator = cls(model, vocabulary, config.decode, config.data.max_length, mesh=mesh)
        translator.step = step
        everywhere = jax.NamedSharding(mesh, PartitionSpec())

        def replicate(leaf: jax.Array) -> jax.Array:
            return jax.make_array_from_callback(leaf.shape, everywhere, lambda _: leaf)

        return translator.with_params(jax.tree.map(replicate, translator.params))

    def with_params(self, params: Params) -> "Translator":
        """The same with other weights of the same shapes; nothing is compiled again."""
        other = copy.copy(self)
        other.params, other._made = params, None
        return other

    def translate(
        self,
        lines: list[str],
        *,
        beam_size: int | None = None,
        alpha: float | None = None,
        progress: bool = False,
        before_batch: Callable[[], None] = lambda: None,
    ) -> list[str]:
        """One line for every line; a blank line stays empty.

        A source of n tokens gets at most n + decode.extra_length, EOS counted on both sides (or on
        neither: the difference is the same). Lines of more than max_length tokens are cut, with a
        warning that says how many.

        Args:
          lines: one sentence each.
          beam_size: W; 1 is greedy search.
          alpha: the length penalty's exponent.
          progress: show a bar when stderr is a terminal.
          before_batch: called before each batch; what it raises ends the translation.
        """
        beam_size = self.decode.beam_size if beam_size is None else beam_size
        alpha = self.decode.alpha if alpha is None else alpha
        if beam_size < 1:
            raise UserError(f"beam_size={beam_size} is too small; it is 1 (greedy search) or more")
        if not math.isfinite(alpha):
            raise UserError(f"alpha={alpha} is no length penalty; 0.6 is usual, 0.0 is none")
        sources = self._encode(lines)
        spoken = [index for index, ids in enumerate(sources) if ids != [EOS]]
        groups = group_by_length(
            [len(sources[index]) for index in spoken],
            self.batch_tokens,
            rows_multiple=self.mesh.size if self.mesh else 1,
        )
        outputs = [""] * len(lines)
        hidden = not (progress and sys.stderr.isatty())
        with tqdm(total=len(spoken), unit=" sentences", disable=hidden) as bar:
            for group in groups:
                before_batch()
                members = [spoken[member] for member in group.members]
                ids = self._search(
                    [sources[index] for index in members],
                    group,
                    beam_size,
                    alpha,
                )
                texts = self.vocabulary.decode(ids[: len(members)].tolist())
                for index, text in zip(members, texts, strict=True):
                    outputs[index] = LINE_BREAKS.sub(" ", text)
                bar.update(len(members))
        return outputs

    def _step_weights(self) -> StepWeights:
        """Those of `params`, made when they are needed first."""
        if self._made is None:
            self._made = _make_step_weights(
                self.params, structure=self.structure, numbers=self.numbers
            )
        return self._made

    def _encode(self, lines: list[str]) -> list[list[int]]:
        sources = self.vocabulary.encode([line.strip() for line in lines])
        too_long = [ids for ids in sources if len(ids) > self.max_length]
        if too_long:
            log.warning(
                "%d of %d lines have more than %d tokens; only that many are translated",
                len(too_long),
                len(lines),
                self.max_length,
            )
        return [cut(ids, self.max_length) for ids in sources]

    def _search(
        self,
        sources: list[list[int]],
        group: Group,
        beam_size: int,
        alpha: float,
    ) -> Int[np.ndarray, "B L"]:
        """The best translation of each source and, behind them, padding."""
        # Rows without a sentence get an empty one, so that no softmax is over nothing.
        filled = sources + [[EOS]] * (group.rows - len(sources))
        extra = self.decode.extra_length
        limits = np.zeros(group.rows, np.int32)
        limits[: len(sources)] = [min(len(ids) + extra, self.longest_output) for ids in sources]
        length = -(-(group.length + extra) // 8) * 8
        return np.asarray(
            _translate_batch(
                self.params,
                pad(filled, group.rows, group.length),
                limits,
                np.float32(alpha),
                weights=self._step_weights(),
                structure=self.structure,
                beam_size=beam_size,
                length=length,
                mesh=self.mesh,
            )
        )


@partial(jax.jit, static_argnames=("structure", "numbers"))
def _make_step_weights(params: Params, *, structure: nnx.GraphDef, numbers: str) -> StepWeights:
    return nnx.merge(structure, params).step_weights(numbers)


def cut(ids: list[int], length: int) -> list[int]:
    """At most `length` tokens; EOS stays the last."""
    return ids if len(ids) <= length else [*ids[: length - 1], EOS]


@partial(jax.jit, static_argnames=("structure", "beam_size", "length", "mesh"))
def _translate_batch(
    params: Params,
    source: Tokens,
    limits: Int[Array, " B"],
    alpha: Float[Array, ""],
    *,
    weights: StepWeights,
    structure: nnx.GraphDef,
    beam_size: int,
    length: int,
    mesh: Mesh | None,
) -> Int[Array, "B L"]:
    """The ids of the best hypotheses; compiled once for every shape of a batch."""

    def on_each_device(
        params: Params, weights: StepWeights, source: Tokens, limits: Array, alpha: Array
    ) -> Array:
        model = nnx.merge(structure, params)
        cross = model.cross_cache(model.encode(source))
        result = beam_search(
            lambda ids, position, cache, context: model.decode_step(
                ids, position, cache, *context, weights
            ),
            # Translations are about as long as their sources; the few that are longer get more room.
            model.empty_cache(limits.shape[0], beam_size, min(length, source.ids.shape[1] + 8)),
            beam_size=beam_size,
            max_lengths=limits,
            length=length,
            alpha=alpha,
            results=1,
            context=(cross, source.segments),
            cache_axis=3,
        )
        return result.ids[:, 0]

    if mesh is None or mesh.size == 1:
        return on_each_device(params, weights, source, limits, alpha)
    # Every device searches for its own rows and stops when they are done.
    rows, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    split = jax.shard_map(
        on_each_device,
        mesh=mesh,
        in_specs=(whole, whole, rows, rows, whole),
        out_specs=rows,
        check_vma=False,
    )
    ids = split(params, weights, source, limits, alpha)
    return jax.lax.with_sharding_constraint(ids, jax.NamedSharding(mesh, whole))
