# SPDX-License-Identifier: Apache-2.0
"""One vocabulary of sentence pieces for both languages: section 5.1."""

import functools
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]

from transformer_jax.data.batch import EOS, PAD, UNKNOWN
from transformer_jax.data.normalization import SAME_LOOK, same_look
from transformer_jax.errors import UserError, check_line, check_lines
from transformer_jax.files import write_whole

# Enough sentences to count pieces by; a larger corpus is sampled.
_MOST_SENTENCES = 5_000_000
_LONGEST_SENTENCE = 4_096  # characters; a longer one is learned from in pieces


class Vocabulary:
    """A sentencepiece model whose first ids are PAD, EOS and UNKNOWN; of source and target alike."""

    def __init__(self, model: bytes):
        """`model`: the contents of a sentencepiece model file."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._rule = _rule_of(model)
        self.size: int = self._processor.vocab_size()
        self.fingerprint = hashlib.sha256(model).hexdigest()

    @classmethod
    def load(cls, path: str | Path, *, size: int | None = None) -> "Vocabulary":
        """The vocabulary in a file.

        Raises:
          UserError: there is no such file, it is no sentencepiece model, its first ids are others,
            or it has another size than asked for.
        """
        try:
            content = Path(path).read_bytes()
            marian = content.startswith(_ZIP)
            vocabulary = MarianVocabulary.unpack(content) if marian else cls(content)
        except OSError as error:
            raise UserError(f"vocabulary {path} cannot be read: {error.strerror}") from None
        except (RuntimeError, KeyError, ValueError, zipfile.BadZipFile):
            raise UserError(f"vocabulary {path} is no sentencepiece model, or damaged") from None
        ids = vocabulary.special_ids
        if ids != (PAD, EOS, UNKNOWN):
            raise UserError(
                f"vocabulary {path} has pad, eos, unk = {ids}; train it with --pad_id={PAD} "
                f"--eos_id={EOS} --unk_id={UNKNOWN} --bos_id=-1"
            )
        if size is not None and vocabulary.size != size:
            raise UserError(
                f"vocabulary {path} has {vocabulary.size} pieces and config.data.vocab_size={size}; "
                f"use --config.data.vocab_size={vocabulary.size}"
            )
        return vocabulary

    @property
    def special_ids(self) -> tuple[int, int, int]:
        """The ids of padding, of the end and of what is unknown."""
        processor = self._processor
        return processor.pad_id(), processor.eos_id(), processor.unk_id()

    @functools.cached_property
    def pieces(self) -> list[str]:
        """The piece of each id."""
        return [self._processor.id_to_piece(number) for number in range(self.size)]

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """The ids of each source sentence, EOS at the end."""
        return self._processor.encode(self._normalized(sentences), add_eos=True)

    def split(self, sentences: Sequence[str]) -> list[list[str]]:
        """The pieces of each source sentence; those of no id are there as its characters."""
        return self._processor.encode(self._normalized(sentences), out_type=str)

    def _normalized(self, sentences: Sequence[str]) -> list[str]:
        return [self._rule(sentence) for sentence in check_lines("sentences", sentences)]

    def split_targets(self, sentences: Sequence[str]) -> list[list[str]]:
        """The same of each target sentence."""
        return self.split(sentences)

    def pieces_of(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The pieces of token ids; "▁" in one stands for a space."""
        return tuple(self.pieces[number] for number in ids)

    def encode_targets(self, sentences: Sequence[str]) -> list[list[int]]:
        """The ids of each target sentence, EOS at the end."""
        return self.encode(sentences)

    def decode(self, sentences: Iterable[Iterable[int]]) -> list[str]:
        """The text of each sequence of target ids, up to its EOS."""
        return self._processor.decode([_until_eos(ids) for ids in sentences])


class MarianVocabulary(Vocabulary):
    """Marian's: a sentencepiece model for each side, and one table of the pieces of both.

    Ids here are the table's in the same order, but for PAD, EOS and UNKNOWN, which come first. A line
    may begin with a code such as >>deu<<, which is one piece and tells a multilingual model the
    target language.
    """

    def __init__(self, source: bytes, target: bytes, table: Mapping[str, int]):
        """A vocabulary of the contents of source.spm, target.spm and vocab.json.

        Raises:
          ValueError: what is wrong with the table.
        """
        missing = [piece for piece in _MARIAN_SPECIAL if piece not in table]
        if missing:
            raise ValueError(f"it has no piece {missing[0]}")
        if sorted(table.values()) != list(range(len(table))):
            raise ValueError(f"its ids are not the numbers from 0 to {len(table) - 1}")
        self._files = source, target, dict(table)
        self._source, self._target = (
            sentencepiece.SentencePieceProcessor(model_proto=model) for model in (source, target)
        )
        self._rules = _rule_of(source), _rule_of(target)
        special = [table[piece] for piece in _MARIAN_SPECIAL]
        others = np.setdiff1d(np.arange(len(table)), special)
        self.marian_ids = np.concatenate(
            [special, others]
        )  # [VOCAB]: the table's id of each of ours
        by_number = sorted(table, key=table.__getitem__)
        self.pieces = [by_number[number] for number in self.marian_ids]
        self._ids = {piece: number for number, piece in enumerate(self.pieces)}
        self.size = len(table)
        self.fingerprint = hashlib.sha256(self.pack()).hexdigest()

    @classmethod
    def unpack(cls, content: bytes) -> "MarianVocabulary":
        """The vocabulary that `pack` made one file of."""
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            source, target, table = (archive.read(name) for name in _MARIAN_FILES)
        return cls(source, target, json.loads(table))

    def pack(self) -> bytes:
        """The three files in one, the same bytes every time: a run folder's vocabulary.model."""
        source, target, table = self._files
        contents = source, target, json.dumps(table, ensure_ascii=False, indent=0).encode()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in zip(_MARIAN_FILES, contents, strict=True):
                archive.writestr(zipfile.ZipInfo(name), content)  # dated 1980
        return packed.getvalue()

    @property
    def files(self) -> tuple[bytes, bytes, dict[str, int]]:
        """What it was made of: source.spm, target.spm, vocab.json."""
        return self._files

    @property
    def special_ids(self) -> tuple[int, int, int]:
        """Ours, by construction."""
        return PAD, EOS, UNKNOWN

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """The ids of each source sentence, EOS at the end."""
        return self._ids_of(self.split(sentences))

    def encode_targets(self, sentences: Sequence[str]) -> list[list[int]]:
        """The ids of each target sentence, EOS at the end."""
        return self._ids_of(self.split_targets(sentences))

    def split(self, sentences: Sequence[str]) -> list[list[str]]:
        """The pieces of each source sentence; those of no id are there as its characters."""
        sentences = check_lines("sentences", sentences)
        return [_pieces(self._source, self._rules[0](sentence)) for sentence in sentences]

    def split_targets(self, sentences: Sequence[str]) -> list[list[str]]:
        """The same of each target sentence."""
        sentences = check_lines("sentences", sentences)
        return [_pieces(self._target, self._rules[1](sentence)) for sentence in sentences]

    def decode(self, sentences: Iterable[Iterable[int]]) -> list[str]:
        """The text of each sequence of target ids, up to its EOS; UNKNOWN is left out."""
        return [
            # A piece that only the source's model knows is text as it stands.
            self._target.decode_pieces(
                [self.pieces[token] for token in _until_eos(ids) if token != UNKNOWN]
            )
            .replace(_SPACE, " ")
            .strip()
            for ids in sentences
        ]

    def _ids_of(self, sentences: list[list[str]]) -> list[list[int]]:
        return [[*(self._ids.get(piece, UNKNOWN) for piece in each), EOS] for each in sentences]


_ZIP = b"PK\x03\x04"  # how the file of a MarianVocabulary begins
_MARIAN_FILES = "source.spm", "target.spm", "vocab.json"
_MARIAN_SPECIAL = "<pad>", "</s>", "<unk>"  # as PAD, EOS, UNKNOWN
_LANGUAGE_CODE = re.compile(r">>.*?<<")
_SPACE = "\u2581"  # sentencepiece's, at the beginning of words


def _pieces(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[str]:
    code = _LANGUAGE_CODE.match(text)
    pieces = [code[0]] if code else []
    return pieces + processor.encode(text[code.end() :] if code else text, out_type=str)


def _until_eos(ids: Iterable[int]) -> list[int]:
    text = []
    for token in ids:
        if token == EOS:
            break
        if token != PAD:
            text.append(int(token))
    return text


def train_vocabulary(
    sentences: Iterable[str],
    *,
    size: int,
    kind: str,
    path: str | Path,
    normalization: str = SAME_LOOK,
    coverage: float = 1.0,
    byte_fallback: bool = False,
) -> Vocabulary:
    """Learn `size` pieces ("bpe" or "unigram") from the sentences of both languages, into `path`.

    With `coverage` 1.0 every character of the normalised sentences is a piece, but for those that
    sentencepiece keeps for itself, such as NUL and U+2585; the others of a line are pieces all the
    same. Decoding gives back the normalised text. `normalization` is as in config.data, and the file
    says which it is. Of more than five million sentences a random part is learned from.

    Raises:
      UserError: the sentences cannot fill a vocabulary of that size, have more characters, or are no
        str.
    """
    if isinstance(sentences, str | bytes):
        check_lines("sentences", sentences)
    failures: list[Exception] = []
    watched, ours = _watched(sentences, failures), normalization == SAME_LOOK
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_learnable(map(same_look, watched) if ours else watched),
            model_writer=model,
            vocab_size=size,
            model_type=kind,
            character_coverage=coverage,
            byte_fallback=byte_fallback,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNKNOWN,
            bos_id=-1,
            input_sentence_size=_MOST_SENTENCES,
            shuffle_input_sentence=True,
            max_sentence_length=4 * _LONGEST_SENTENCE,
            num_threads=4,  # fixed: the pieces of unigram depend on it
            minloglevel=2,
            normalization_rule_name="identity" if ours else normalization,
        )
    except (RuntimeError, OSError) as error:
        if failures:
            raise failures[0] from None
        raise UserError(_reason(str(error), size)) from None
    write_whole(Path(path), _named(model.getvalue(), normalization))
    return Vocabulary.load(path)


def _named(model: bytes, normalization: str) -> bytes:
    """The model with the name of the rule that `Vocabulary` applies, or as it is."""
    if normalization != SAME_LOOK:
        return model
    proto = ModelProto.FromString(model)
    proto.normalizer_spec.name = normalization
    return proto.SerializeToString()


def _rule_of(model: bytes) -> Callable[[str], str]:
    """What is done to text before a model of sentencepiece, with rules of its own, gets it."""
    return same_look if ModelProto.FromString(model).normalizer_spec.name == SAME_LOOK else str


def _learnable(sentences: Iterable[str]) -> Iterator[str]:
    """The sentences as sentencepiece learns from all of them, long ones in pieces.

    It would leave out those with a character of its own, and put a space for the names of its ids.
    """
    for sentence in sentences:
        sentence = _RESERVED.sub(lambda found: _HARMLESS[found[0]], sentence)
        for start in range(0, len(sentence), _LONGEST_SENTENCE):
            yield sentence[start : start + _LONGEST_SENTENCE]


_RESERVED = re.compile("[\0\u2585]|<(?=pad>|/s>|unk>)")
_HARMLESS = {"\0": " ", "\u2585": "\u2584", "<": "< "}


def _watched(sentences: Iterable[str], failures: list[Exception]) -> Iterator[str]:
    """The sentences; sentencepiece makes a RuntimeError of any error in between, so keep it."""
    try:
        for number, sentence in enumerate(sentences):
            check_line(f"sentences[{number}]", sentence)
            yield sentence
    except Exception as error:
        failures.append(error)
        raise


def _reason(message: str, size: int) -> str:
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return "the training corpus has no usable sentence: every line is blank"
    at_most = re.search(r"<= (\d+)", message)
    at_least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if at_most:
        remedy = f"the corpus fills at most {at_most[1]} pieces; set it to that or less"
    elif at_least:
        remedy = f"the corpus has many characters; set it to {at_least[1]} or more"
    else:
        remedy = " ".join(message.split())[:300]
    return f"config.data.vocab_size={size} cannot be trained: {remedy}"
