# SPDX-License-Identifier: Apache-2.0
"""The paper's big model on WMT14 English-German: table 2, and the last row of table 3.

213 million parameters in the paper (214 here, with its 37,000 pieces and biases), 300,000 steps. The
paper reports 28.4 BLEU on newstest2014, after 3.5 days on eight P100.

    python -m transformer_jax.main --config=configs/big.py

English-French, 41.8 BLEU in the paper, with dropout 0.1:

    python -m transformer_jax.main --config=configs/big.py --workdir=runs/big-fr \\
        --config.data.source=wmt14_translate/fr-en --config.data.target_lang=fr \\
        --config.data.vocab_size=32000 --config.model.dropout=0.1
"""

import ml_collections

from transformer_jax.config import default_config, shrink


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """What big changes of base, which is what the defaults of transformer_jax/config.py are."""
    config = default_config()
    config.data.source = "wmt14_translate/de-en"
    # Common Crawl has thousands of characters that occur twice: their bytes are pieces enough.
    config.data.character_coverage = 0.9995
    config.data.byte_fallback = True
    config.model.d_model = 1024
    config.model.d_ff = 4096
    config.model.num_heads = 16
    config.model.dropout = 0.3
    config.train.num_steps = 300_000
    config.train.checkpoint_every = 600  # every 10 minutes, at 1.0 s a step
    config.train.keep = 20
    return shrink(config, variant)
