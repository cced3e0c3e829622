# SPDX-License-Identifier: Apache-2.0
"""The paper's base model on WMT14 English-German: table 2, and the first row of table 3.

65 million parameters, 100,000 steps of about 25,000 source and 25,000 target tokens. The paper
reports 27.3 BLEU on newstest2014, after 12 hours on eight P100.

    python -m transformer_jax.main --config=configs/base.py

English-French, 38.1 BLEU in the paper, with its vocabulary of 32,000 pieces:

    python -m transformer_jax.main --config=configs/base.py --workdir=runs/base-fr \\
        --config.data.source=wmt14_translate/fr-en --config.data.target_lang=fr \\
        --config.data.vocab_size=32000

configs/base.py:tiny is the same run, shrunk until it takes a minute: a smoke test.
"""

import ml_collections

from transformer_jax.config import default_config, shrink


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The paper's recipe; the defaults of transformer_jax/config.py are this model."""
    config = default_config()
    config.data.source = "wmt14_translate/de-en"
    config.data.source_lang = "en"
    config.data.target_lang = "de"
    config.data.vocab_size = 37_000
    # Common Crawl has thousands of characters that occur twice: their bytes are pieces enough.
    config.data.character_coverage = 0.9995
    config.data.byte_fallback = True
    config.data.batch_tokens = 25_000
    config.train.num_steps = 100_000
    config.train.checkpoint_every = 1_500  # the paper: every 10 minutes, at 0.4 s a step
    config.train.keep = 5
    return shrink(config, variant)
