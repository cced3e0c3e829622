# SPDX-License-Identifier: Apache-2.0
"""BLEU and chrF are sacrebleu's own, with signature and interval."""

import pytest
from sacrebleu.metrics import BLEU, CHRF

from transformer_jax.errors import UserError
from transformer_jax.inference.scores import score

HYPOTHESES = ["the cat sat on the mat", "A dog runs in the park .", "it rains", ""] * 20
REFERENCES = ["the cat sat on a mat", "a dog runs in the park .", "it rains", "nothing"] * 20


def test_scores_are_sacrebleu_s():
    scores = score(HYPOTHESES, REFERENCES)
    bleu = BLEU()
    assert scores["bleu"] == pytest.approx(
        bleu.corpus_score(HYPOTHESES, [REFERENCES]).score, abs=1e-4
    )
    chrf = CHRF().corpus_score(HYPOTHESES, [REFERENCES])
    assert scores["chrf"] == pytest.approx(chrf.score, abs=1e-4)
    assert scores["sentences"] == 80


def test_the_interval_holds_the_score_and_is_the_same_every_time():
    scores = score(HYPOTHESES, REFERENCES)
    low, high = scores["bleu_interval"]
    assert low < scores["bleu"] < high
    assert score(HYPOTHESES, REFERENCES) == scores
    assert "bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp" in scores["signature"]


def test_without_resamples_there_is_no_interval():
    scores = score(HYPOTHESES, REFERENCES, bootstrap=0)
    assert scores["bleu_interval"] is None and "bs:" not in scores["signature"]
    assert scores["bleu"] == score(HYPOTHESES, REFERENCES)["bleu"]


def test_lowercase_and_tokenize_reach_sacrebleu():
    cased = score(HYPOTHESES, REFERENCES, bootstrap=0)
    folded = score(HYPOTHESES, REFERENCES, lowercase=True, tokenize="none", bootstrap=0)
    assert folded["bleu"] > cased["bleu"] and folded["chrf"] > cased["chrf"]
    assert "case:lc" in folded["signature"] and "tok:none" in folded["signature"]
    assert "case:lc" in folded["chrf_signature"]


def test_several_references_are_sacrebleu_s_own():
    others = [line.replace("a ", "the ") for line in REFERENCES]
    scores = score(HYPOTHESES, REFERENCES, others)
    bleu = BLEU().corpus_score(HYPOTHESES, [REFERENCES, others])
    chrf = CHRF().corpus_score(HYPOTHESES, [REFERENCES, others])
    assert scores["bleu"] == pytest.approx(bleu.score, abs=1e-4)
    assert scores["chrf"] == pytest.approx(chrf.score, abs=1e-4)
    assert scores["signature"].startswith("nrefs:2|")
    assert scores["chrf_signature"].startswith("nrefs:2|")
    assert scores["sentences"] == 80
    assert score(HYPOTHESES, REFERENCES, others)["bleu"] > score(HYPOTHESES, REFERENCES)["bleu"]
    with pytest.raises(UserError, match=r"80 translations .* 79 references"):
        score(HYPOTHESES, REFERENCES, others[1:])


def test_a_perfect_translation_has_100():
    scores = score(REFERENCES, REFERENCES, bootstrap=10)
    assert scores["bleu"] == scores["chrf"] == 100.0
    assert scores["bleu_interval"] == [100.0, 100.0]


@pytest.mark.parametrize(
    ("hypotheses", "references", "tokenize", "message"),
    [
        (["a"], ["a", "b"], "13a", "1 translations .* 2 references"),
        ([], [], "13a", "no sentences"),
        (["a"], ["a"], "14a", "--tokenize=14a is unknown; allowed: none, zh, 13a"),
    ],
)
def test_what_cannot_be_scored_is_a_user_error(hypotheses, references, tokenize, message):
    with pytest.raises(UserError, match=message):
        score(hypotheses, references, tokenize=tokenize)
