# SPDX-License-Identifier: Apache-2.0
"""A small model on the built-in phrasebook: the whole path in two minutes on two CPU cores.

python -m transformer_jax.main --config=configs/demo.py
"""

import ml_collections

from transformer_jax.config import default_config, shrink


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """2+2 layers of width 128."""
    config = default_config()
    config.model.num_layers = 2
    config.model.d_model = 128
    config.model.d_ff = 256
    config.model.num_heads = 4
    config.model.d_k = 32
    config.model.d_v = 32
    config.model.dropout = 0.0
    config.data.source = "phrasebook"
    config.data.vocab_size = 1_000
    config.data.max_length = 64
    config.data.batch_tokens = 2_048
    config.optimizer.warmup_steps = 100
    config.optimizer.peak_rate = 5e-3
    config.train.num_steps = 1_200
    config.train.log_every = 50
    config.train.eval_every = 1_200
    config.train.checkpoint_every = 50
    config.train.keep = 5
    config.train.logits_chunk = 512
    return shrink(config, variant)
