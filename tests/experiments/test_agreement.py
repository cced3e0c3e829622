# SPDX-License-Identifier: Apache-2.0
"""The comparison with CTranslate2, run as its user runs it."""

import re
import subprocess
import sys

import pytest

from tests.formats.peers import sentences, write_folder
from transformer_jax.formats import marian

for module in ("ctranslate2", "torch", "transformers"):
    pytest.importorskip(module)


def test_every_line_is_the_same_or_shown_with_both_scores(tmp_path):
    write_folder(tmp_path / "theirs", layers=1)
    marian.import_folder(tmp_path / "theirs", tmp_path / "run")
    source = tmp_path / "lines.en"
    source.write_text("\n".join(["", *sentences(30)]) + "\n", encoding="utf-8")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.agreement", "--lines=20"),
            *(f"--workdir={tmp_path / 'run'}", f"--input={source}"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    *shown, last = run.stdout.splitlines()
    same = int(re.fullmatch(r"(\d+) of 20 the same", last)[1])
    assert (
        same >= 15
    )  # hypotheses of random weights are nearer to each other than a trained model's
    ours = {line.split(":")[0]: float(line.split()[2]) for line in shown[::2]}
    theirs = {line.split(":")[0]: float(line.split()[2]) for line in shown[1::2]}
    assert len(ours) == len(theirs) == 20 - same
    for number, log_prob in ours.items():
        assert log_prob >= theirs[number] - 1e-3, "their search found a better translation"
