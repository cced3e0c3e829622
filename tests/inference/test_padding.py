# SPDX-License-Identifier: Apache-2.0
"""How sentences share batches: each once, few shapes, little padding."""

import numpy as np

from transformer_jax.data.batch import EOS
from transformer_jax.inference.padding import group_by_length, pad


def test_groups_hold_every_sentence_once_in_few_shapes():
    # 64 of at most 16 tokens fill half a batch; all other lengths fill several.
    lengths = [16] * 60 + np.random.default_rng(0).integers(17, 257, 940).tolist()
    groups = group_by_length(lengths, 2048, rows_multiple=2)
    assert sorted(index for group in groups for index in group.members) == [*range(1000)]
    for group in groups:
        assert len(group.members) <= group.rows and group.rows % 2 == 0
        assert group.rows * group.length <= 2048 or group.rows == 2
        assert max(lengths[index] for index in group.members) <= group.length
    assert {(group.rows, group.length) for group in groups} == {
        (64, 16), (64, 32), (32, 64), (16, 128), (8, 256),
    }  # fmt: skip


def test_a_single_sentence_is_not_padded_to_a_full_batch():
    (group,) = group_by_length([20], 2048)
    assert (group.rows, group.length, group.members) == (4, 32, [0])


def test_padding_is_segment_0():
    tokens = pad([[5, 6, EOS], [EOS]], 3, 4)
    assert tokens.ids.tolist() == [[5, 6, EOS, 0], [EOS, 0, 0, 0], [0, 0, 0, 0]]
    assert tokens.segments.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert tokens.positions[0].tolist() == [0, 1, 2, 0]
