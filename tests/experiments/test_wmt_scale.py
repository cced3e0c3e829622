# SPDX-License-Identifier: Apache-2.0
"""The made-up corpus is like the real one where it matters: lengths, rare words and characters."""

from collections import Counter

import numpy as np
import pytest


@pytest.mark.slow  # millions of words are made first
def test_the_corpus_is_as_uneven_as_text_and_the_same_every_time(tmp_path):
    from experiments.wmt_scale import write_corpus  # here: it defines flags, the whole process's

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_corpus(tmp_path / name, 20_000)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        f"{split}.{side}" for split in ("test", "train", "validation") for side in ("de", "en")
    ]
    for name in names:
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two
    english, german = (
        (tmp_path / "one" / f"train.{side}").read_text().split("\n") for side in ("en", "de")
    )
    assert len(english) == len(german) == 20_001, "and nothing behind the last line feed"
    lengths = np.array([[len(line.split()) for line in side[:-1]] for side in (english, german)])
    assert 20 < np.median(lengths[0]) < 26 and 23 < lengths[0].mean() < 31
    assert np.corrcoef(lengths)[0, 1] > 0.9, "a long sentence has a long translation"
    words = Counter(" ".join(german).split())
    once = sum(count == 1 for count in words.values())
    assert 0.4 < once / len(words) < 0.8, "about half of the words occur once, as Zipf's law has it"
    characters = Counter("".join(german))
    assert sum(count <= 3 for count in characters.values()) > 50
