# SPDX-License-Identifier: Apache-2.0
"""Text in, text out: section 6.1."""

import collections
import copy
import dataclasses
import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float, Int

from transformer_jax.config import PRECISIONS, DecodeConfig
from transformer_jax.data.batch import EOS
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.errors import UserError
from transformer_jax.inference.batches import make_search_weights, sample_batch, translate_batch
from transformer_jax.inference.beam_search import BeamResult, length_penalty
from transformer_jax.inference.encoding import (
    Counts,
    Prefix,
    encode_lines,
    encode_pairs,
    encode_prefixes,
    whole_characters,
)
from transformer_jax.inference.ensemble import Ensemble
from transformer_jax.inference.forced import force
from transformer_jax.inference.hypotheses import Hypothesis, SearchOptions
from transformer_jax.inference.padding import (
    Group,
    group_by_length,
    multiple_of_8,
    pad,
    pad_prefixes,
)
from transformer_jax.inference.texts import texts_of, words_of
from transformer_jax.inference.words import Words, align_words, words_of_text
from transformer_jax.model.decoding import SearchWeights
from transformer_jax.model.transformer import Transformer
from transformer_jax.progress import Bar

log = logging.getLogger(__name__)

Params = Any  # the model's weights, nested by module and parameter name


@dataclasses.dataclass(frozen=True)
class _Sentence:
    """A line with text, to be translated."""

    text: str
    ids: list[int]  # its pieces and EOS
    prefix: Prefix
    number: int  # of the line in the whole text


class Translator:
    """A model, its vocabulary and how to search.

    Translator.from_workdir("runs/demo").translate(["A dog runs."])
    """

    def __init__(
        self,
        model: Transformer | Ensemble,
        vocabulary: Vocabulary,
        decode: DecodeConfig,
        max_length: int,
        *,
        mesh: Mesh | None = None,
        precision: str | None = None,
    ):
        """A translator with the model's weights.

        Args:
          model: its weights may be abstract if only `with_params` is used.
          vocabulary: of both languages.
          decode: settings of the search; `translate` may be given others.
          max_length: longer sources, in tokens with EOS, are cut, and those for which the model has
            no learned position.
          mesh: the devices that share the sentences. None: the one that has the weights.
          precision: what a search multiplies: "float32", "int16" (nearly as exact), "bfloat16" or "int8";
            by default what the model computes in. Integers make large models faster on CPUs that
            multiply bytes by hardware.

        Raises:
          UserError: a precision that there is not.
        """
        if precision is not None and precision not in PRECISIONS:
            raise UserError(f"precision: {precision!r} is not one of {', '.join(PRECISIONS)}")
        self.structure, params = nnx.split(model, nnx.Param)
        self.params: Params = nnx.to_pure_dict(params)
        self.vocabulary, self.decode, self.mesh = vocabulary, decode, mesh
        self.precision = precision
        self._made: Any = None  # see _search_weights
        self.checkpoints: tuple[str, ...] = ()  # such as "3000" or "average.3000", of from_workdir
        # A table of learned positions has no rows behind its last.
        members = model.models if isinstance(model, Ensemble) else [model]
        self.longest_output: int | float = min(
            member.config.max_length if member.config.positions == "learned" else math.inf
            for member in members
        )
        self.max_length = int(min(max_length, self.longest_output))
        self.batch_tokens = 2048 if jax.default_backend() == "cpu" else 8192

    @classmethod
    def from_workdir(
        cls,
        workdir: str | Path | Sequence[str | Path],
        checkpoint: str | int | None = None,
        *,
        mesh: Mesh | None = None,
        precision: str | None = None,
    ) -> "Translator":
        """The translator of a run folder, or of an ensemble of several checkpoints.

        Args:
          workdir: the run folder; several make an ensemble.
          checkpoint: "latest", "best" (by validation BLEU), "average" or a step; several, as in
            "latest,best,3000", make an ensemble, with those of every run folder. A step may be an int.
            None: the average that the run wrote at its end, unless a checkpoint is newer; else the latest.
          mesh: the devices that share the sentences, of all processes that make this call. None: all
            devices of this one.
          precision: see `Translator`.

        Raises:
          UserError: no such run folder or checkpoint, or the vocabularies differ.
        """
        from transformer_jax import checkpoints  # here: a search alone needs no Orbax

        workdirs = [workdir] if isinstance(workdir, str | Path) else list(workdir)
        wanted = [None] if checkpoint is None else str(checkpoint).replace(" ", "").split(",")
        loaded = [checkpoints.load_model(folder, each) for folder in workdirs for each in wanted]
        configs, models, names = zip(*loaded, strict=True)
        pairs = zip((folder for folder in workdirs for _ in wanted), names, strict=True)
        log.info("weights: %s", ", ".join(f"{folder} {name}" for folder, name in pairs))
        vocabulary = _common_vocabulary(workdirs)
        if mesh is None:
            mesh = Mesh(jax.local_devices(), ("data",))
        translator = cls(
            models[0] if len(models) == 1 else Ensemble(models),
            vocabulary,
            configs[0].decode,
            min(config.data.max_length for config in configs),
            mesh=mesh,
            precision=precision,
        )
        translator.checkpoints = names
        everywhere = jax.NamedSharding(mesh, PartitionSpec())

        def replicate(leaf: jax.Array) -> jax.Array:
            return jax.make_array_from_callback(leaf.shape, everywhere, lambda _: leaf)

        return translator.with_params(jax.tree.map(replicate, translator.params))

    def with_params(self, params: Params) -> "Translator":
        """The same with other weights of the same shapes; nothing is compiled again."""
        other = copy.copy(self)
        other.params, other._made = params, None
        return other

    def fingerprint(self) -> str:
        """A SHA-256 of weights and vocabulary: what translations depend on besides the options."""
        digest = hashlib.sha256(self.vocabulary.fingerprint.encode())
        for path, leaf in jax.tree.leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def translate(
        self,
        lines: Sequence[str],
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
          progress: show a bar, on a terminal or in a notebook; see `Bar`.
          before_batch: called before each batch; what it raises ends the translation.

        Raises:
          UserError: a setting out of its range, or lines that are no list of str.
        """
        options = SearchOptions(beam_size=beam_size, alpha=alpha)
        with Bar(len(lines), "sentences", "translating", shown=progress) as bar:
            found = self.search(lines, options, before_batch=before_batch, after_batch=bar.update)
        return [hypotheses[0].text for hypotheses in found]

    def search(
        self,
        lines: Sequence[str],
        options: SearchOptions = SearchOptions(),  # noqa: B008  (frozen)
        *,
        prefixes: Sequence[str] | None = None,
        first_line: int = 0,
        counts: Counts | None = None,
        before_batch: Callable[[], None] = lambda: None,
        after_batch: Callable[[int], Any] = lambda lines: None,
    ) -> list[list[Hypothesis]]:
        """For every line its translations, best first, or samples in the order of their drawing.

        A line has options.n_best of them, fewer only where the beam has no more of different text; a
        blank line has one, of no text. Samples are as they were drawn. Limits are those of `translate`,
        with options.max_length the lower of both.

        Args:
          lines: one sentence each.
          options: how to search, and what to say.
          prefixes: what each line's translation begins with, or blank for those without; its pieces
            are forced, up to the model's largest length, and their probability counts. Its text stays as it
            is, also what the vocabulary does not have. It may exceed the limit, and is then all there is.
          first_line: the number of the first line in the whole text; samples depend on it.
          counts: is added to, instead of a warning that lines were cut.
          before_batch: called before each batch; what it raises ends the search.
          after_batch: called after each batch, and for blank lines, with a number of lines done.

        Raises:
          UserError: more translations are wanted than the beam keeps, prefixes of another number than
            lines, or what is no list of str.
        """
        options.width(self.decode)  # an error now, rather than in the first batch
        texts = whole_characters("lines", lines)
        starts = encode_prefixes(self.vocabulary, prefixes, len(texts), self.max_length - 1)
        sources = encode_lines(self.vocabulary, texts, self.max_length, counts, starts)
        sentences = [
            _Sentence(text.strip(), ids, start, number)
            for number, (text, ids, start) in enumerate(
                zip(texts, sources, starts, strict=True), start=first_line
            )
            if ids != [EOS]
        ]
        found = [[Hypothesis.blank(options)] for _ in texts]
        after_batch(len(texts) - len(sentences))
        for members, result in self._find(sentences, options, before_batch):
            hypotheses = self._hypotheses(members, result, options)
            for sentence, of_line in zip(members, hypotheses, strict=True):
                index = sentence.number - first_line
                # Weights that are not finite find nothing: the line stays blank.
                found[index] = of_line or found[index]
                if counts is not None:
                    counts.lost += not found[index][0].text.strip()
            after_batch(len(members))
        return found

    def score(
        self,
        sources: Sequence[str],
        targets: Sequence[str],
        *,
        alpha: float | None = None,
        alignments: bool = False,
        counts: Counts | None = None,
    ) -> list[Hypothesis]:
        """What the model says of given translations, token by token: log P(target | source).

        A side of more than max_length tokens is cut. A pair with a blank side has no tokens, and NaN
        for its log-probability.

        Args:
          sources: one sentence each.
          targets: their translations.
          alpha: of the length penalty in `Hypothesis.score`.
          alignments: give alignments, too.
          counts: is added to.

        Raises:
          UserError: the numbers of lines differ, or they are no lists of str.
        """
        sources = whole_characters("sources", sources)
        targets = whole_characters("targets", targets)
        pairs = encode_pairs(self.vocabulary, sources, targets, self.max_length, counts)
        options = SearchOptions(alpha=alpha, scores=True, alignments=alignments)
        blank = dataclasses.replace(Hypothesis.blank(options), score=math.nan, log_prob=math.nan)
        found = [dataclasses.replace(blank, text=text) for text in targets]
        spoken = [index for index, pair in enumerate(pairs) if [EOS] not in pair]
        words = [
            (
                words_of_text(sources[index].strip(), self.vocabulary.split),
                words_of_text(targets[index].strip(), self.vocabulary.split_targets),
            )
            for index in (spoken if alignments else ())
        ]
        hypotheses = self._forced(
            [pairs[index] for index in spoken], [targets[index] for index in spoken], words, options
        )
        for index, hypothesis in zip(spoken, hypotheses, strict=True):
            found[index] = hypothesis
        return found

    def _find(
        self,
        sentences: list[_Sentence],
        options: SearchOptions,
        before_batch: Callable[[], None],
    ) -> Iterator[tuple[list[_Sentence], BeamResult]]:
        """The hypotheses of each sentence, batch by batch: which sentences, and a row for each of them."""
        groups = group_by_length(
            [len(sentence.ids) for sentence in sentences],
            self.batch_tokens,
            rows_multiple=self.mesh.size if self.mesh else 1,
        )
        for group in groups:
            before_batch()
            members = [sentences[member] for member in group.members]
            yield members, self._search(members, group, options)

    def _search(
        self, sentences: list[_Sentence], group: Group, options: SearchOptions
    ) -> BeamResult:
        """A batch's hypotheses and, behind them, rows of padding; numpy arrays."""
        # Rows without a sentence get an empty one, so that no softmax is over nothing.
        empty_rows = group.rows - len(sentences)
        filled = [sentence.ids for sentence in sentences] + [[EOS]] * empty_rows
        starts = [sentence.prefix.ids for sentence in sentences]
        extra, longest = self.decode.extra_length, self.longest_output
        if options.max_length is not None:
            longest = min(longest, options.max_length + 1)  # and EOS
        limits = np.zeros(group.rows, np.int32)
        limits[: len(sentences)] = [
            max(min(len(sentence.ids) + extra, longest), len(sentence.prefix.ids) + 1)
            for sentence in sentences
        ]
        most = int(max(limits.max(), min(group.length + extra, longest)))
        arguments = (
            self.params,
            pad(filled, group.rows, group.length),
            limits,
            pad_prefixes(starts, group.rows),
            np.float32(self._alpha(options)),
            np.int32(min(options.min_length, most)) if options.min_length else None,
        )
        shape = {
            "weights": self._search_weights(),
            "structure": self.structure,
            "length": multiple_of_8(most),
            "mesh": self.mesh,
        }
        if options.sampling is not None:
            sampling = options.sampling
            result = sample_batch(
                *arguments,
                sampling.arrays(),
                np.array([sentence.number for sentence in sentences] + [0] * empty_rows, np.uint32),
                top_k=sampling.top_k,
                samples=options.n_best,
                **shape,
            )
        else:
            result = translate_batch(
                *arguments,
                beam_size=options.width(self.decode),
                # Some may be of one text.
                results=1 if options.n_best == 1 else options.width(self.decode),
                **shape,
            )
        return jax.device_get(result)

    def _search_weights(self) -> SearchWeights | list[SearchWeights]:
        """Those of `params`, made when they are needed first."""
        if self._made is None:
            self._made = make_search_weights(
                self.params, structure=self.structure, precision=self.precision
            )
        return self._made

    def _hypotheses(
        self, sentences: list[_Sentence], result: BeamResult, options: SearchOptions
    ) -> list[list[Hypothesis]]:
        """What was found for each sentence, which is a row of `result`."""
        rows = [
            (row, place)
            for row in range(len(sentences))
            for place in range(result.lengths.shape[1])
            if result.lengths[row, place] > 0
        ]
        ids = [result.ids[at][: result.lengths[at]].tolist() for at in rows]
        texts = texts_of(self.vocabulary, ids, [sentences[row].prefix for row, _ in rows])
        if options.sampling is None:
            kept = _distinct([row for row, _ in rows], texts, options.n_best)
            rows = [rows[number] for number in kept]
            ids = [ids[number] for number in kept]
            texts = [texts[number] for number in kept]
        if options.scores or options.alignments:
            pairs = [(sentences[row].ids, found) for (row, _), found in zip(rows, ids, strict=True)]
            words = []
            if options.alignments:
                of_source = [
                    words_of_text(sentence.text, self.vocabulary.split) for sentence in sentences
                ]
                words = [
                    (of_source[row], words_of(self.vocabulary, found, sentences[row].prefix))
                    for (row, _), found in zip(rows, ids, strict=True)
                ]
            hypotheses = self._forced(pairs, texts, words, options)
        else:
            scores = result.scores
            log_probs = scores * self._penalties(result.lengths, options)
            hypotheses = [
                Hypothesis(
                    text,
                    self.vocabulary.pieces_of(found[:-1]),
                    float(scores[at]),
                    float(log_probs[at]),
                )
                for at, text, found in zip(rows, texts, ids, strict=True)
            ]
        of_sentence: list[list[Hypothesis]] = [[] for _ in sentences]
        for (row, _), hypothesis in zip(rows, hypotheses, strict=True):
            of_sentence[row].append(hypothesis)
        return of_sentence

    def _forced(
        self,
        pairs: list[tuple[list[int], list[int]]],
        texts: list[str],
        words: list[tuple[Words, Words]],
        options: SearchOptions,
    ) -> list[Hypothesis]:
        """Each pair's target, whose text is given, with what the model says of it.

        `words`, if alignments are asked for: of each pair's pieces, those that were cut included.
        """
        forced = force(
            self.params,
            pairs,
            structure=self.structure,
            batch_tokens=self.batch_tokens,
            mesh=self.mesh,
            aligned=options.alignments,
        )
        penalties = self._penalties(np.array([len(target) for _, target in pairs], int), options)
        hypotheses = []
        for number, ((_, target), text, said, penalty) in enumerate(
            zip(pairs, texts, forced, penalties.tolist(), strict=True)
        ):
            log_prob = float(said.log_probs.sum(dtype=np.float64))
            alignment = None
            if said.looked_at is not None:
                of_source, of_target = words[number]
                looked_at = said.looked_at[:-1].tolist()
                alignment = align_words(of_source, of_target[: len(looked_at)], looked_at)
            hypotheses.append(
                Hypothesis(
                    text,
                    self.vocabulary.pieces_of(target[:-1]),
                    log_prob / penalty,
                    log_prob,
                    tuple(said.log_probs.tolist()) if options.scores else None,
                    alignment,
                )
            )
        return hypotheses

    def _penalties(
        self, lengths: Int[np.ndarray, "*dims"], options: SearchOptions
    ) -> Float[np.ndarray, "*dims"]:
        return np.asarray(length_penalty(jnp.asarray(lengths), self._alpha(options)))

    def _alpha(self, options: SearchOptions) -> float:
        """The exponent, or the largest with which the penalty of every length is a float32.

        From there on the longest translation wins, or with a negative one the shortest.
        """
        alpha = self.decode.alpha if options.alpha is None else options.alpha
        longest = self.max_length + self.decode.extra_length
        most = 70.0 / math.log((6 + longest) / 6)
        return max(-most, min(alpha, most))


def _distinct(rows: list[int], texts: list[str], most: int) -> list[int]:
    """The numbers of the texts that are the first of their kind in their row, `most` of each row."""
    chosen: list[int] = []
    seen: dict[int, set[str]] = collections.defaultdict(set)
    for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
        if text not in seen[row] and len(seen[row]) < most:
            seen[row].add(text)
            chosen.append(number)
    return chosen


def _common_vocabulary(workdirs: Sequence[str | Path]) -> Vocabulary:
    """The vocabulary of the run folders.

    Raises:
      UserError: they have different ones.
    """
    first, *others = [Vocabulary.load(Path(folder) / "vocabulary.model") for folder in workdirs]
    for folder, other in zip(workdirs[1:], others, strict=True):
        if other.fingerprint != first.fingerprint:
            raise UserError(
                f"{workdirs[0]} and {folder} have different vocabularies; only models of one "
                "vocabulary (config.data.vocab_path) make an ensemble"
            )
    return first
