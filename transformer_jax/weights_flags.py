# SPDX-License-Identifier: Apache-2.0
"""Flags of the commands that use trained models: which weights."""

from absl import flags

from transformer_jax.path_flags import define_paths

WORKDIR = define_paths(
    "workdir",
    "The run folder that training wrote. Given several times: an ensemble of runs that have one "
    "vocabulary.",
    required=True,
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Which weights: latest, best (by BLEU on the validation split), average (written at the end of "
    "training, or by python -m transformer_jax.average), or a step, such as 2000. By default the average, "
    "unless there is none or a checkpoint is newer; then the latest. Several, as in latest,best,2000, are "
    "an ensemble: their probabilities are averaged.",
)
