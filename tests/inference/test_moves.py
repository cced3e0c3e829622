# SPDX-License-Identifier: Apache-2.0
"""Moves of hypotheses: all ways of descent. What moves with them, test_beam_search.py proves."""

import itertools

import jax.numpy as jnp
import numpy as np

from transformer_jax.inference.moves import assign_places


def test_few_hypotheses_move_and_none_from_where_another_goes():
    """All ways that four hypotheses can descend from four."""
    parents = np.array(list(itertools.product(range(4), repeat=4)))
    order = np.asarray(assign_places(jnp.asarray(parents)))
    assert (np.sort(order, axis=1) == np.arange(4)).all(), "a hypothesis is lost"
    moved = np.take_along_axis(parents, order, axis=1)
    for before, after in zip(parents, moved, strict=True):
        stay = {place for place, parent in enumerate(after) if parent == place}
        assert stay == set(before), "one that something continues had to give way"
