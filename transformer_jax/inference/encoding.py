# SPDX-License-Identifier: Apache-2.0
"""Lines of text into token ids, as a search and a scoring take them."""

import dataclasses
import logging
import re
from collections.abc import Sequence

from transformer_jax.data.batch import EOS, UNKNOWN
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.errors import UserError, check_lines

log = logging.getLogger(__name__)

_HALVES = re.compile("[\ud800-\udfff]")  # of characters that UTF-16 writes as two


@dataclasses.dataclass
class Counts:
    """How many lines came, and how many of them were of a kind that one wants to know of."""

    lines: int = 0
    empty: int = 0  # of no text
    lost: int = 0  # with text, and a translation of none
    cut: int = 0  # of more tokens than the model takes
    unknown: int = 0  # with something that the vocabulary does not have
    tokens: int = 0  # of targets that were scored, EOS included
    log_prob: float = 0.0  # of these tokens together


@dataclasses.dataclass(frozen=True)
class Prefix:
    """What a line's translation begins with."""

    text: str = ""  # none if the ids are none, or only the first of it
    ids: list[int] = dataclasses.field(default_factory=list)


def whole_characters(name: str, lines: Sequence[str]) -> list[str]:
    """The lines without halves of characters, which a str may have and no text.

    Two halves become the character that they are of, a lone one becomes U+FFFD.

    Raises:
      UserError: `name` is no list of str.
    """
    return [
        line.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if _HALVES.search(line)
        else line
        for line in check_lines(name, lines)
    ]


def encode_lines(
    vocabulary: Vocabulary,
    lines: Sequence[str],
    max_length: int,
    counts: Counts | None = None,
    prefixes: Sequence[Prefix] = (),
) -> list[list[int]]:
    """The ids of each line, EOS at the end, cut to max_length; [EOS] for a blank line.

    `counts` is added to, `prefixes` included; without it a warning says how many lines were cut.

    Raises:
      UserError: it is no list of str.
    """
    encoded = vocabulary.encode([line.strip() for line in whole_characters("lines", lines)])
    too_long = sum(len(ids) > max_length for ids in encoded)
    if counts is not None:
        counts.lines += len(encoded)
        counts.empty += sum(ids == [EOS] for ids in encoded)
        counts.cut += too_long
        starts = [prefix.ids for prefix in prefixes] or [[]] * len(encoded)
        counts.unknown += sum(
            UNKNOWN in ids or (UNKNOWN in start and ids != [EOS])
            for ids, start in zip(encoded, starts, strict=True)
        )
    elif too_long:
        log.warning(
            "%d of %d lines have more than %d tokens; only that many are translated",
            too_long,
            len(encoded),
            max_length,
        )
    return [cut(ids, max_length) for ids in encoded]


def encode_pairs(
    vocabulary: Vocabulary,
    sources: Sequence[str],
    targets: Sequence[str],
    max_length: int,
    counts: Counts | None = None,
) -> list[tuple[list[int], list[int]]]:
    """The ids of both sides of each pair, as `encode_lines` makes them.

    A pair counts as cut, empty or unknown if one of its sides does.

    Raises:
      UserError: the numbers of lines differ, or they are no lists of str.
    """
    sources = whole_characters("sources", sources)
    targets = whole_characters("targets", targets)
    if len(sources) != len(targets):
        raise UserError(
            f"{len(sources)} sources and {len(targets)} targets are no pairs; give one target a source"
        )
    pairs = list(
        zip(
            vocabulary.encode([line.strip() for line in sources]),
            vocabulary.encode_targets([line.strip() for line in targets]),
            strict=True,
        )
    )
    if counts is not None:
        counts.lines += len(pairs)
        counts.empty += sum([EOS] in pair for pair in pairs)
        counts.cut += sum(max(map(len, pair)) > max_length for pair in pairs)
        counts.unknown += sum(any(UNKNOWN in ids for ids in pair) for pair in pairs)
    return [(cut(source, max_length), cut(target, max_length)) for source, target in pairs]


def encode_prefixes(
    vocabulary: Vocabulary, prefixes: Sequence[str] | None, lines: int, longest: int
) -> list[Prefix]:
    """The first `longest` token ids of each prefix; none for a line without one.

    Raises:
      UserError: there are prefixes, but not one a line, or they are no list of str.
    """
    if prefixes is None:
        return [Prefix()] * lines
    prefixes = [prefix.strip() for prefix in whole_characters("prefixes", prefixes)]
    if len(prefixes) != lines:
        raise UserError(
            f"{len(prefixes)} prefixes for {lines} lines; give one a line, blank where there is none"
        )
    encoded = [ids[:-1] for ids in vocabulary.encode_targets(prefixes)]  # without EOS
    return [
        Prefix(text if 0 < len(ids) <= longest else "", ids[:longest])
        for text, ids in zip(prefixes, encoded, strict=True)
    ]


def cut(ids: list[int], length: int) -> list[int]:
    """At most `length` tokens; EOS stays the last."""
    return ids if len(ids) <= length else [*ids[: length - 1], EOS]
