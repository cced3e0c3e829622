# SPDX-License-Identifier: Apache-2.0
"""Imports point down: data and model know nothing of training and inference, and so on.

What is heavy, or not there on every system, is imported where it is used.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a package may import of ours, besides itself.
ALLOWED = {
    "transformer_jax/data": {
        "transformer_jax.config",
        "transformer_jax.errors",
        "transformer_jax.files",
        "transformer_jax.progress",
        "transformer_jax.text_files",
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
        "transformer_jax.progress",
    },
    "transformer_jax/inference": {
        "transformer_jax.checkpoints",
        "transformer_jax.config",
        "transformer_jax.data",
        "transformer_jax.errors",
        "transformer_jax.files",
        "transformer_jax.model",
        "transformer_jax.progress",
        "transformer_jax.text_files",
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


def imported_at_once(module: str) -> set[str]:
    """What importing a module of ours imports, of ours and of others."""
    found, ahead = set(), [module]
    while ahead:
        name = ahead.pop()
        file = ROOT / name.replace(".", "/")
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if name in found:
            continue
        found.add(name)
        if file.exists():
            ahead += imports_of(ast.parse(file.read_text(encoding="utf-8")))
    return found


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Names that are imported when the module is, not in functions or for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield from imports_of(node)


NOT_FOR_HELP = {"jax", "flax", "numpy"}
ONLY_TO_TRAIN = {"grain", "array_record", "tensorflow_datasets", "tensorboardX"}
ONLY_WITH_A_FOLDER = {*ONLY_TO_TRAIN, "orbax", "sacrebleu"}


@pytest.mark.parametrize(
    "module, others",
    [
        *((command, NOT_FOR_HELP) for command in ("main", "translate", "evaluate", "score")),
        *((command, NOT_FOR_HELP) for command in ("average", "convert")),
        ("inference.translator", ONLY_WITH_A_FOLDER),
        ("inference.streaming", ONLY_WITH_A_FOLDER),
        ("checkpoints", {*ONLY_TO_TRAIN, "sacrebleu"}),
        ("evaluation", ONLY_TO_TRAIN),
        ("run", {"tensorflow_datasets"}),
    ],
)
def test_what_is_heavy_is_imported_by_whoever_needs_it(module, others):
    found = {name.split(".")[0] for name in imported_at_once(f"transformer_jax.{module}")}
    assert {"transformer_jax", "absl"} <= found, "the walk is broken"
    assert not found & others


def test_nor_does_it_come_with_what_others_import():
    """One process that imports more and more."""
    steps = [
        ("transformer_jax", [*ONLY_WITH_A_FOLDER, *NOT_FOR_HELP, "tqdm"]),
        ("transformer_jax.inference.translator", [*ONLY_WITH_A_FOLDER, "scipy", "pyarrow"]),
        ("transformer_jax.evaluation, transformer_jax.checkpoints", [*ONLY_TO_TRAIN, "pyarrow"]),
    ]
    lines = ["import sys"]
    for modules, others in steps:
        lines += [f"import {modules}", f"print([x for x in {others} if x in sys.modules])"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n") == ["[]", "[]", "[]", ""]


def test_what_only_posix_has_is_imported_with_another_way_out():
    posix = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
    for path in sorted((ROOT / "transformer_jax").glob("**/*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tried = {
            name
            for node in ast.walk(tree)
            if isinstance(node, ast.Try)
            for statement in node.body
            for name in imports_of(ast.Module([statement], []))
        }
        everywhere = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert everywhere & posix <= tried, path
