# SPDX-License-Identifier: Apache-2.0
"""One vocabulary of sentence pieces for both languages: section 5.1."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from transformer_jax.data.batch import EOS, PAD, UNKNOWN
from transformer_jax.errors import UserError

# Enough sentences to count pieces by; a larger corpus is sampled.
_MOST_SENTENCES = 5_000_000
_LONGEST_SENTENCE = 16_384  # bytes; nothing is learned from longer ones


class Vocabulary:
    """A sentencepiece model whose first ids are PAD, EOS and UNKNOWN."""

    def __init__(self, model: bytes):
        """`model`: the contents of a sentencepiece model file."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
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
            vocabulary = cls(Path(path).read_bytes())
        except OSError as error:
            raise UserError(f"vocabulary {path} cannot be read: {error.strerror}") from None
        except RuntimeError:
            raise UserError(f"vocabulary {path} is no sentencepiece model, or damaged") from None
        processor = vocabulary._processor
        ids = processor.pad_id(), processor.eos_id(), processor.unk_id()
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

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """The ids of each sentence, EOS at the end."""
        return self._processor.encode(list(sentences), add_eos=True)

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The pieces of token ids; "▁" in one stands for a space."""
        return tuple(self._processor.id_to_piece(list(ids)))

    def decode(self, sentences: Iterable[Iterable[int]]) -> list[str]:
        """The text of each sequence of ids, up to its EOS."""
        return self._processor.decode([_until_eos(ids) for ids in sentences])


def _until_eos(ids: Iterable[int]) -> list[int]:
    text = []
    for token in ids:
        if token == EOS:
            break
        if token != PAD:
            text.append(int(token))
    return text


def train_vocabulary(
    sentences: Iterable[str], *, size: int, kind: str, path: str | Path
) -> Vocabulary:
    """Learn `size` pieces ("bpe" or "unigram") from the sentences of both languages, into `path`.

    Every character of the corpus is a piece, and text is kept as it is, so that decoding gives back
    what was encoded (but for repeated spaces).

    Raises:
      UserError: the sentences cannot fill a vocabulary of that size, or have more characters.
    """
    path = Path(path)
    temporary = path.with_suffix(".tmp")
    failures: list[Exception] = []
    try:
        with temporary.open("wb") as writer:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_watched(sentences, failures),
                model_writer=writer,
                vocab_size=size,
                model_type=kind,
                character_coverage=1.0,
                normalization_rule_name="identity",
                pad_id=PAD,
                eos_id=EOS,
                unk_id=UNKNOWN,
                bos_id=-1,
                input_sentence_size=_MOST_SENTENCES,
                shuffle_input_sentence=True,
                max_sentence_length=_LONGEST_SENTENCE,
                num_threads=4,  # fixed: the pieces of unigram depend on it
                minloglevel=2,
            )
    except RuntimeError as error:
        temporary.unlink(missing_ok=True)
        if failures:
            raise failures[0] from None
        raise UserError(_reason(str(error), size)) from None
    temporary.replace(path)
    return Vocabulary.load(path)


def _watched(sentences: Iterable[str], failures: list[Exception]) -> Iterator[str]:
    """The sentences; sentencepiece makes a RuntimeError of any error in between, so keep it."""
    try:
        yield from sentences
    except Exception as error:
        failures.append(error)
        raise


def _reason(message: str, size: int) -> str:
    if "sentences_.empty()" in message or "all_chars_count" in message:
        return (
            "the training corpus has no usable sentence: every line is blank, or longer than "
            f"{_LONGEST_SENTENCE:,} bytes"
        )
    at_most = re.search(r"<= (\d+)", message)
    at_least = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if at_most:
        remedy = f"the corpus fills at most {at_most[1]} pieces; set it to that or less"
    elif at_least:
        remedy = f"the corpus has many characters; set it to {at_least[1]} or more"
    else:
        remedy = " ".join(message.split())[:300]
    return f"config.data.vocab_size={size} cannot be trained: {remedy}"
