# SPDX-License-Identifier: Apache-2.0
"""A run's model as compiled code for any device, through jax.export: StableHLO in JAX's own wrapping.

    encode.jax_export        (weights, ids [B, S], lengths [B]) -> cross
    decode_step.jax_export   (weights, ids [B, W], position [], cache, cross, lengths [B])
                             -> (logits [B, W, VOCAB], cache)
    weights.npz              the arrays of `weights`, a dict by name
    model.json               special ids, shapes of the cache, limits
    source.spm, target.spm, pieces.json    sentencepiece's models, and the piece of every id

B, S, W and L, the cache's length, are free. `cross` and `cache` are lists of one (keys, values) a decoder
layer, [B, H, S, K or V] and [B, W, H, L, K or V]; the first step's cache is zeros, and its ids are
meaningless. A reader needs JAX and NumPy: experiments/serving/stablehlo_translate.py.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from transformer_jax import checkpoints
from transformer_jax.config import Config, ModelConfig
from transformer_jax.data.batch import EOS, PAD, UNKNOWN, Tokens
from transformer_jax.data.vocabulary import MarianVocabulary, Vocabulary
from transformer_jax.errors import UserError, check_lines
from transformer_jax.files import followed
from transformer_jax.model.embeddings import sinusoids
from transformer_jax.model.transformer import KeysValues, Transformer
from transformer_jax.training.step import model_structure

Weights = dict[str, Array]

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_FORMAT = 1


def export_folder(
    workdir: str | Path,
    folder: str | Path,
    checkpoint: str | int | None = None,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> None:
    """Write the encoder and a decoder's step, compiled for the platforms, and what they need.

    Raises:
      UserError: no such run, checkpoint or platform.
    """
    for platform in check_lines("platforms", platforms):
        if platform not in PLATFORMS:
            raise UserError(f"--platforms={platform} is unknown; allowed: {', '.join(PLATFORMS)}")
    workdir, folder = Path(workdir), followed(Path(folder))
    config = checkpoints.load_config(workdir)
    step, params = checkpoints.load_params(workdir, checkpoint)
    vocabulary = Vocabulary.load(workdir / "vocabulary.model", size=config.model.vocab_size)
    model, weights = _portable(config, params)
    encode, decode_step = compile_for(model, weights, platforms)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder} cannot be used: {error.strerror}") from None
    (folder / "encode.jax_export").write_bytes(encode.serialize())
    (folder / "decode_step.jax_export").write_bytes(decode_step.serialize())
    arrays: dict[str, Any] = {name: np.asarray(array) for name, array in weights.items()}
    np.savez(folder / "weights.npz", **arrays)
    _write_vocabulary(folder, vocabulary, workdir)
    about = _about(config, model) | {"platforms": list(platforms), "step": step}
    (folder / "model.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def compile_for(
    config: ModelConfig, weights: Weights, platforms: Sequence[str]
) -> tuple[export.Exported, export.Exported]:
    """The two functions of the module's docstring, for all lengths and batch sizes."""
    batch, source, width, length = export.symbolic_shape("b, s, w, t")
    structure = model_structure(config)

    def model_of(weights: Weights) -> Transformer:
        return nnx.merge(structure, _nested(weights))

    def encode(
        weights: Weights, ids: Int[Array, "B S"], lengths: Int[Array, " B"]
    ) -> list[KeysValues]:
        segments = _segments(ids.shape[1], lengths)
        positions = segments * jnp.arange(ids.shape[1])  # padding may be longer than the table
        model = model_of(weights)
        memory = model.encode(Tokens(ids, segments, positions))
        return model.cross_cache(memory)

    def decode_step(
        weights: Weights,
        ids: Int[Array, "B W"],
        position: Int[Array, ""],
        cache: list[KeysValues],
        cross: list[KeysValues],
        lengths: Int[Array, " B"],
    ) -> tuple[Float[Array, "B W VOCAB"], list[KeysValues]]:
        segments = _segments(cross[0][0].shape[2], lengths)
        return model_of(weights).decode_step(ids, position, cache, cross, segments)

    def of(*shape: Any, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def keys_values(
        *rows: Any, positions: Any
    ) -> list[tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]]:
        lead, dtype = (*rows, config.num_heads, positions), jnp.dtype(config.dtype)
        layer = tuple(of(*lead, size, dtype=dtype) for size in (config.d_k, config.d_v))
        return [layer] * config.num_layers  # type: ignore[list-item]

    shapes = {name: of(*array.shape, dtype=array.dtype) for name, array in weights.items()}
    ids, lengths = of(batch, source), of(batch)
    cross = keys_values(batch, positions=source)
    cache = keys_values(batch, width, positions=length)
    # On a CPU's mesh the model uses no kernel of its own, which would be for one platform.
    mesh = Mesh(jax.devices("cpu")[:1], ("data",))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return (
            export.export(jax.jit(encode), platforms=platforms)(shapes, ids, lengths),
            export.export(jax.jit(decode_step), platforms=platforms)(
                shapes, of(batch, width), of(), cache, cross, lengths
            ),
        )


def _portable(config: Config, params: checkpoints.Params) -> tuple[ModelConfig, Weights]:
    """The same model with its positions in a table, since free lengths need one, and a fixed dtype.

    Its attention is XLA's, which any device compiles, whatever the run was trained with.
    """
    model = dataclasses.replace(config.model, attention_implementation="auto")
    if model.positions == "sinusoidal":
        longest = config.data.max_length + config.decode.extra_length
        table = {"position_table": jnp.asarray(sinusoids(longest, model.d_model))}
        params = params | {"embedding": params["embedding"] | table}
        model = dataclasses.replace(model, positions="learned", max_length=longest)
    if model.dtype == "auto":
        model = dataclasses.replace(model, dtype="float32")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return model, {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves
    }


def _nested(weights: Weights) -> dict[str, Any]:
    """{"encoder/0/...": array} as the model has it: {"encoder": {0: ...}}."""
    nested: dict[Any, Any] = {}
    for name, array in weights.items():
        *parts, last = (int(part) if part.isdecimal() else part for part in name.split("/"))
        place = nested
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = array
    return nested


def _segments(length: int, lengths: Int[Array, " B"]) -> Int[Array, "B S"]:
    return (jnp.arange(length) < lengths[:, None]).astype(jnp.int32)


def _write_vocabulary(folder: Path, vocabulary: Vocabulary, workdir: Path) -> None:
    if isinstance(vocabulary, MarianVocabulary):
        source, target, _ = vocabulary.files
    else:
        source = target = (workdir / "vocabulary.model").read_bytes()
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    pieces = json.dumps(vocabulary.pieces, ensure_ascii=False, indent=0)
    (folder / "pieces.json").write_text(pieces + "\n", encoding="utf-8")


def _about(config: Config, model: ModelConfig) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "jax": jax.__version__,
        "dtype": model.dtype,
        "pad": PAD,
        "eos": EOS,
        "unknown": UNKNOWN,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "d_k": model.d_k,
        "d_v": model.d_v,
        "most_positions": model.max_length,
        "max_length": min(config.data.max_length, model.max_length),
        "extra_length": config.decode.extra_length,
    }
