# SPDX-License-Identifier: Apache-2.0
"""Imports point down: data and model know nothing of training and inference, and so on."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a package may import of ours, besides itself.
ALLOWED = {
    "transformer_jax/data": {
        "transformer_jax.config",
        "transformer_jax.errors",
        "transformer_jax.files",
    },
    "transformer_jax/model": {
        "attention_kernels",
        "transformer_jax.config",
        "transformer_jax.data.batch",
    },
    "transformer_jax/training": {
        "attention_kernels",
        "transformer_jax.config",
        "transformer_jax.data",
        "transformer_jax.errors",
        "transformer_jax.files",
        "transformer_jax.model",
    },
    "transformer_jax/inference": {
        "transformer_jax.checkpoints",
        "transformer_jax.config",
        "transformer_jax.data",
        "transformer_jax.errors",
        "transformer_jax.files",
        "transformer_jax.model",
    },
    "kernels/attention_kernels": set(),
    "configs": {"transformer_jax.config"},
}


def our_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    ours = ("transformer_jax", "attention_kernels", "configs", "experiments")
    return {name for name in found if name.split(".")[0] in ours}


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_point_down(folder):
    itself = folder.removeprefix("kernels/").replace("/", ".")
    allowed = ALLOWED[folder] | {itself}
    files = sorted((ROOT / folder).glob("**/*.py"))
    assert files
    for path in files:
        for name in our_imports(path):
            assert any(name == top or name.startswith(top + ".") for top in allowed), (
                f"{path.relative_to(ROOT)} imports {name}; {folder} may import {sorted(allowed)}"
            )


def test_only_the_model_and_the_loss_know_the_kernels():
    for path in sorted((ROOT / "transformer_jax").glob("**/*.py")):
        place = path.relative_to(ROOT / "transformer_jax").as_posix()
        if any(name.startswith("attention_kernels") for name in our_imports(path)):
            assert place.startswith("model/") or place == "training/loss.py"


def test_nothing_imports_tensorflow_or_torch():
    for path in sorted((ROOT / "transformer_jax").glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {"tensorflow", "torch"}, path
