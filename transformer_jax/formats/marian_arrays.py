# SPDX-License-Identifier: Apache-2.0
"""The weights of a MarianMTModel from and to ours. It is the paper's model; what differs is how it is kept.

- Positions: sines in the first half of D, cosines in the second, where the paper has them in turn. That
  is another order of D, the same in every array that reads or writes the residual stream: the weights
  are reordered, and both models compute the same.
- A matrix is [out, in] there and [in, out] here.
- Without `scale_embedding`: the embedding is divided by sqrt(D), and the last layer norm, which only the
  softmax reads, is multiplied by it.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from transformer_jax import checkpoints
from transformer_jax.config import ModelConfig
from transformer_jax.data.batch import PAD
from transformer_jax.data.vocabulary import MarianVocabulary
from transformer_jax.errors import UserError

Arrays = dict[str, np.ndarray]

_IMPOSSIBLE = -1e9  # the logit of what must not be chosen; finite, as Hugging Face sums logits up
_EMBEDDINGS = (  # the names of one matrix; files have one of them or several
    "model.shared.weight",
    "lm_head.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
)
# Parts of a parameter's name, ours and theirs.
_PARTS = {
    "self_attention_residual/norm": "self_attn_layer_norm",
    "cross_attention_residual/norm": "encoder_attn_layer_norm",
    "feed_forward_residual/norm": "final_layer_norm",
    "self_attention": "self_attn",
    "cross_attention": "encoder_attn",
    "feed_forward/expand": "fc1",
    "feed_forward/contract": "fc2",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    "kernel": "weight",
    "scale": "weight",
}
# From the end of our parameter's name to the axis that is D; the first match holds.
_D_AXES = (
    (r"embedding/table$", 1),
    (r"norm/(scale|bias)$", 0),
    (r"(query|key|value|expand)/kernel$", 0),
    (r"(out|contract)/kernel$", 1),
    (r"(out|contract)/bias$", 0),
    (r"", None),  # biases of heads and hidden units
)


def from_marian(
    arrays: Mapping[str, np.ndarray],
    config: ModelConfig,
    vocabulary: MarianVocabulary,
    *,
    scaled: bool,
) -> checkpoints.Params:
    """Our weights, nested by module and parameter name, float32, of a MarianMTModel's arrays.

    `scaled`: its config has scale_embedding.

    Raises:
      UserError: an array is missing or has another shape than the config says.
    """
    order = concatenated_places(config.d_model)
    like = checkpoints.abstract_params(config)

    def ours(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name == "embedding/table":
            array = embedding_table(arrays)
        elif name == "embedding/bias":
            array = final_logits_bias(arrays)
        else:
            array = float32(arrays, _marian_name(name))
        array = array.T if name.endswith("kernel") else array
        if array.shape != leaf.shape:
            raise UserError(f"{name} has the shape {array.shape}, config.json says {leaf.shape}")
        if name.startswith("embedding"):
            array = array[vocabulary.marian_ids]
        if (axis := _d_axis(name)) is not None:
            array = array.take(order, axis=axis)
        if not scaled and name == "embedding/table":
            array = array / np.float32(config.d_model**0.5)
        if not scaled and name.startswith(_last_norm(config)):
            array = array * np.float32(config.d_model**0.5)
        return np.ascontiguousarray(array)

    return jax.tree_util.tree_map_with_path(ours, like)


def to_marian(
    params: checkpoints.Params, config: ModelConfig, vocabulary: MarianVocabulary
) -> Arrays:
    """The arrays of a MarianMTModel with scale_embedding, of our weights; the inverse of `from_marian`.

    PAD's embedding becomes zero where the decoder starts from the zero vector: Marian's starts from
    PAD. Its logit is then out of reach.
    """
    places = np.argsort(concatenated_places(config.d_model))
    rows = np.argsort(vocabulary.marian_ids)
    arrays: Arrays = {}
    table = np.array(params["embedding"]["table"], np.float32)
    bias = np.zeros(config.vocab_size, np.float32)
    if config.logits_bias:
        bias[:] = params["embedding"]["bias"]
    if config.decoder_start == "zero" and table[PAD].any():
        table[PAD], bias[PAD] = 0.0, _IMPOSSIBLE
    arrays["model.shared.weight"] = table[rows][:, places]
    arrays["final_logits_bias"] = bias[rows][None]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith("embedding/"):
            continue
        array = np.asarray(leaf, np.float32)
        if (axis := _d_axis(name)) is not None:
            array = array.take(places, axis=axis)
        arrays[_marian_name(name)] = array.T if name.endswith("kernel") else array
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def concatenated_places(d_model: int) -> np.ndarray:
    """[D]: where Marian keeps each of our features: sines first, then cosines."""
    features = np.arange(d_model)
    return np.where(features % 2 == 0, features // 2, (d_model + 1) // 2 + features // 2)


def _marian_name(name: str) -> str:
    stack, layer, place = name.split("/", 2)
    for ours, theirs in _PARTS.items():
        place = re.sub(rf"(^|/){ours}(?=/|$)", rf"\g<1>{theirs}", place)
    return f"model.{stack}.layers.{layer}.{place}".replace("/", ".")


def _d_axis(name: str) -> int | None:
    return next(axis for pattern, axis in _D_AXES if re.search(pattern, name))


def _last_norm(config: ModelConfig) -> str:
    return f"decoder/{config.num_layers - 1}/feed_forward_residual/norm/"


def embedding_table(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The one matrix of source, target and softmax."""
    found = [name for name in _EMBEDDINGS if name in arrays]
    if not found:
        raise UserError(f"there is no array {_EMBEDDINGS[0]}; is this a MarianMTModel?")
    first = float32(arrays, found[0])
    for name in found[1:]:
        if not np.array_equal(first, float32(arrays, name)):
            raise UserError(
                f"{name} differs from {found[0]}; only models of one shared embedding can be imported"
            )
    return first


def final_logits_bias(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """[VOCAB], in their order of ids."""
    return float32(arrays, "final_logits_bias").reshape(-1)


def without_rows(name: str, array: np.ndarray, rows: int, kept: int) -> np.ndarray:
    """The array, and of one that has a place for each of `rows` tokens only the first `kept`."""
    axis = 0 if name in _EMBEDDINGS else -1 if name == "final_logits_bias" else None
    if axis is None or array.shape[axis] != rows:
        return array
    return array[:kept] if axis == 0 else array[..., :kept]


def float32(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Raises: UserError if there is none of that name."""
    if name not in arrays:
        raise UserError(f"there is no array {name}; is this a MarianMTModel?")
    return np.asarray(arrays[name], np.float32)
