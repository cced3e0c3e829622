# SPDX-License-Identifier: Apache-2.0
"""A step's hand-counted work: against the sizes of the weights, and figures worked out elsewhere."""

import jax
import pytest

from configs import base, big
from transformer_jax.config import MeshConfig, resolve
from transformer_jax.flops import flops_of_step
from transformer_jax.training.sharding import make_mesh
from transformer_jax.training.step import abstract_state


@pytest.mark.parametrize("config, teraflops", [(base, 9.45), (big, 32.1)])
def test_a_step_of_the_papers_batch(config, teraflops):
    model = resolve(config.get_config()).model
    assert flops_of_step(model, source=25_000, target=25_000) == pytest.approx(
        teraflops * 1e12, rel=0.005
    )


def test_every_weight_of_a_matrix_product_is_counted_once_a_position(small_config):
    """Forward two operations a weight and position, backward four; d_k, d_v and F are all different."""
    run = resolve(small_config)
    source, target = 17, 13
    expected = 0
    params = abstract_state(run, make_mesh(MeshConfig())).params
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        of_memory = "cross_attention/key" in name or "cross_attention/value" in name
        if name.endswith("kernel"):
            expected += leaf.size * (source if "encoder" in name or of_memory else target)
        elif name == "embedding/table":
            expected += leaf.size * target
    assert flops_of_step(run.model, source=source, target=target) == 6 * expected
