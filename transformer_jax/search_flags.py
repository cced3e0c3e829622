# SPDX-License-Identifier: Apache-2.0
"""Flags of the commands that translate: how to search."""

from absl import flags

from transformer_jax.config import PRECISIONS

BEAM_SIZE = flags.DEFINE_integer(
    "beam_size",
    None,
    "Hypotheses that are kept at a time: 1 is greedy search and fast; the paper uses 4. "
    "By default the run's config.decode.beam_size.",
    lower_bound=1,
)
ALPHA = flags.DEFINE_float(
    "alpha",
    None,
    "Exponent of the length penalty: larger values prefer longer translations; the paper uses "
    "0.6. By default the run's config.decode.alpha.",
)
PRECISION = flags.DEFINE_enum(
    "precision",
    None,
    list(PRECISIONS),
    "What a search multiplies. int8: 8 bits a weight, and a scale for every output; int16: twice 8 "
    "bits, nearly as exact as float32. On CPUs that multiply bytes by hardware (VNNI, AMX) they make a "
    "model of base's size faster, 2.5 and 1.5 times, and a small one slower. By default what the run's "
    "config.model.dtype means here: bfloat16 where the device multiplies it, else float32.",
)
