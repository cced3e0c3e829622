# SPDX-License-Identifier: Apache-2.0
"""How the commands write translations and scores: plain text, Moses' columns, or JSON lines."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from transformer_jax.inference.hypotheses import Hypothesis, SearchOptions

_COLUMN = " ||| "
_ESCAPED = "&#124;&#124;&#124;"  # not | | |, which are more words, and alignments number words


def write_translations(
    found: Sequence[Sequence[Hypothesis]], first_line: int, options: SearchOptions, form: str
) -> str:
    """The lines for a chunk of sources, whose first has the number `first_line`, from 0.

    Text has a line a hypothesis with these columns, " ||| " between them, and for a ||| of the
    translation itself what Moses writes, &#124;&#124;&#124;, if there are columns:

        the source's number     if n_best > 1
        the translation
        its score               if n_best > 1 or scores
        its log-probability, and those of its tokens, separated by spaces      if scores
        its alignment, as source-target pairs of words: "0-0 1-2"              if alignments

    JSON lines have an object a hypothesis: line, rank (both from 0), text, score, log_prob, tokens, and
    token_log_probs and alignment if they were asked for.
    """
    each = [
        (first_line + number, rank, hypothesis)
        for number, hypotheses in enumerate(found)
        for rank, hypothesis in enumerate(hypotheses)
    ]
    if form == "jsonl":
        objects = ({"line": line, "rank": rank} | _object(entry) for line, rank, entry in each)
        return _json_lines(objects)
    rows = []
    for line, _, entry in each:
        columns = [entry.text]
        if options.n_best > 1:
            columns.insert(0, str(line))
        if options.n_best > 1 or options.scores:
            columns.append(_number(entry.score))
        if entry.token_log_probs is not None:
            columns += [_number(entry.log_prob), " ".join(map(_number, entry.token_log_probs))]
        if entry.alignment is not None:
            columns.append(_pharaoh(entry))
        if len(columns) > 1:
            place = int(options.n_best > 1)
            columns[place] = entry.text.replace("|||", _ESCAPED)
        rows.append(_COLUMN.join(columns))
    return "".join(f"{row}\n" for row in rows)


def write_scores(scored: Sequence[Hypothesis], first_line: int, form: str) -> str:
    """The lines for a chunk of pairs, one a pair, whose first has the number `first_line`, from 0.

    Text: log-probability ||| that of each token, then of the end ||| alignment, if asked for. A pair
    with a blank side has only "nan". JSON lines: as for translations, without rank; null instead of NaN.
    """
    if form == "jsonl":
        return _json_lines(
            {"line": first_line + number} | _object(entry) for number, entry in enumerate(scored)
        )
    rows = []
    for entry in scored:
        columns = [_number(entry.log_prob)]
        if entry.token_log_probs:
            columns.append(" ".join(map(_number, entry.token_log_probs)))
        if entry.alignment:
            columns.append(_pharaoh(entry))
        rows.append(_COLUMN.join(columns))
    return "".join(f"{row}\n" for row in rows)


def _object(hypothesis: Hypothesis) -> dict[str, Any]:
    values: dict[str, Any] = {
        "text": hypothesis.text,
        "score": _rounded(hypothesis.score),
        "log_prob": _rounded(hypothesis.log_prob),
        "tokens": hypothesis.tokens,
    }
    if hypothesis.token_log_probs is not None:
        values["token_log_probs"] = [_rounded(value) for value in hypothesis.token_log_probs]
    if hypothesis.alignment is not None:
        values["alignment"] = hypothesis.alignment
    return values


def _json_lines(objects: Iterable[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in objects)


def _rounded(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def _number(value: float) -> str:
    return f"{value:.4f}"


def _pharaoh(hypothesis: Hypothesis) -> str:
    return " ".join(f"{source}-{target}" for source, target in hypothesis.alignment or ())
