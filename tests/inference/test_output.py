# SPDX-License-Identifier: Apache-2.0
"""Columns that can be told apart whatever a translation has in it."""

import json

import pytest

from transformer_jax.inference.hypotheses import Hypothesis, SearchOptions
from transformer_jax.inference.output import write_translations

ODD = ["a ||| b", "|||", "x |||", "||||", "a|||b || c"]


@pytest.mark.parametrize("text", ODD)
def test_columns_can_be_told_apart(text):
    """By splitting a row; undoing what Moses' deescape-special-chars.perl undoes gives the text."""
    found = [[Hypothesis(text, ("▁x",), -1.0, -2.0, (-1.5, -0.5), ((0, 0),))]]
    for options, count, place in (
        (SearchOptions(n_best=2, beam_size=2, scores=True, alignments=True), 6, 1),
        (SearchOptions(scores=True, alignments=True), 5, 0),
    ):
        columns = write_translations(found, 7, options, "text").rstrip("\n").split(" ||| ")
        assert len(columns) == count and columns[-1] == "0-0"
        assert columns[place].replace("&#124;", "|") == text
        assert len(columns[place].split()) == len(text.split()), "alignments number words"
        [line] = write_translations(found, 7, options, "jsonl").splitlines()
        assert json.loads(line)["text"] == text
    lean = [[Hypothesis(text, ("▁x",), -1.0, -2.0)]]
    assert write_translations(lean, 7, SearchOptions(), "text") == f"{text}\n"
