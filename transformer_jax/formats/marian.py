# SPDX-License-Identifier: Apache-2.0
"""Run folders from and to Hugging Face's MarianMTModel, the format of the Opus-MT models.

Marian's model is the paper's. What differs, and where it goes:

- The arrays: marian_arrays.py.
- PyTorch's epsilon in layer norms, `final_logits_bias`, the decoder's first input: config.model.norm_epsilon,
  logits_bias, decoder_start.
- Ids: data/vocabulary.py, MarianVocabulary.

CTranslate2 converts the same folder.
"""

import importlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_jax import checkpoints
from transformer_jax.config import Config, ConfigError, DataConfig, DecodeConfig, ModelConfig
from transformer_jax.data.batch import PAD
from transformer_jax.data.vocabulary import MarianVocabulary, Vocabulary
from transformer_jax.errors import UserError
from transformer_jax.files import followed, write_whole
from transformer_jax.formats import safetensors
from transformer_jax.formats.marian_arrays import (
    Arrays,
    concatenated_places,
    embedding_table,
    final_logits_bias,
    float32,
    from_marian,
    to_marian,
    without_rows,
)
from transformer_jax.model.embeddings import sinusoids

log = logging.getLogger(__name__)

_ACTIVATIONS = {
    "relu": "relu",
    "swish": "swish",
    "silu": "swish",
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu",
}  # theirs to ours; the first one of several is written
_NORM_EPSILON = 1e-5  # of PyTorch's layer norm; config.json has no field for it
_POSITIONS = 512  # Opus-MT's max_position_embeddings


def import_folder(folder: str | Path, workdir: str | Path) -> None:
    """Make a run folder of a MarianMTModel's folder: the weights become checkpoint 0.

    Raises:
      UserError: a file is missing, the model is one that this package cannot be, or there is a run in
        `workdir` already.
    """
    folder, workdir = Path(folder), Path(workdir)
    if checkpoints.saved_steps(workdir):
        raise UserError(f"--workdir={workdir} has checkpoints already; give another one")
    checkpoints.check_folder(workdir)
    described = _read_json(folder / "config.json")
    vocabulary = _read_vocabulary(folder, described)
    arrays = _without_padding(_read_arrays(folder), described, vocabulary.size, folder)
    try:
        model = _model_config(described, arrays, vocabulary, folder)
        config = _run_config(folder, described, model)
    except ConfigError as error:
        raise UserError(f"{folder} cannot be imported: {error}") from None
    params = from_marian(arrays, model, vocabulary, scaled=described.get("scale_embedding", False))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be used: {error.strerror}") from None
    write_whole(workdir / "vocabulary.model", _vocabulary_file(vocabulary))
    write_whole(workdir / "config.json", config.to_json().encode())
    checkpoints.save_params(workdir, 0, params)


def export_folder(
    workdir: str | Path, folder: str | Path, checkpoint: str | int | None = None
) -> None:
    """Write a run's model as a folder that MarianMTModel, MarianTokenizer and CTranslate2 load.

    Raises:
      UserError: no such checkpoint, or a model that MarianMTModel cannot be.
    """
    workdir, folder = Path(workdir), followed(Path(folder))
    config = checkpoints.load_config(workdir)
    _check_can_be_marian(config.model, workdir)
    vocabulary = Vocabulary.load(workdir / "vocabulary.model", size=config.model.vocab_size)
    if not isinstance(vocabulary, MarianVocabulary):
        vocabulary = _as_marian(vocabulary, (workdir / "vocabulary.model").read_bytes())
    _, params = checkpoints.load_params(workdir, checkpoint)
    arrays = to_marian(params, config.model, vocabulary)
    if config.model.decoder_start == "pad":
        log.warning(
            "this model's decoder starts from the embedding of <pad>, CTranslate2 always starts from "
            "the zero vector: translations there may differ"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output={folder} cannot be used: {error.strerror}") from None
    source, target, table = vocabulary.files
    (folder / "source.spm").write_bytes(source)
    (folder / "target.spm").write_bytes(target)
    _write_json(folder / "vocab.json", table)
    for name, content in _descriptions(config, table).items():
        _write_json(folder / name, content)
    safetensors.write(folder / "model.safetensors", arrays, {"format": "pt"})


def _read_arrays(folder: Path) -> Arrays:
    """The arrays of model.safetensors, of its shards, or of pytorch_model.bin where PyTorch is."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return safetensors.read(folder / "model.safetensors")
    if index.exists():
        shards = sorted(set(_read_json(index)["weight_map"].values()))
        return {
            name: array
            for shard in shards
            for name, array in safetensors.read(folder / shard).items()
        }
    path = folder / "pytorch_model.bin"
    if not path.exists():
        raise UserError(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise UserError(
            f"{path} is PyTorch's own format and PyTorch is not installed; pip install torch, or save "
            "the model as safetensors"
        ) from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling a damaged file raises
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}); download it again, or save the model as "
            "safetensors"
        ) from None
    return {name: array.float().numpy() for name, array in loaded.items()}


def _read_vocabulary(folder: Path, described: Mapping[str, Any]) -> MarianVocabulary:
    if (folder / "target_vocab.json").exists():
        raise UserError(
            f"{folder} has a vocabulary for each side (target_vocab.json); only models of one shared "
            "vocabulary can be imported"
        )
    table = _read_json(folder / "vocab.json")
    source, target = (_read_bytes(folder / name) for name in ("source.spm", "target.spm"))
    try:
        vocabulary = MarianVocabulary(source, target, table)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'vocab.json'} cannot be used: {error}") from None
    except RuntimeError:
        raise UserError(f"{folder} has a .spm file that is no sentencepiece model") from None
    _check_added_tokens(folder, vocabulary.size)
    pad, eos = (int(number) for number in vocabulary.marian_ids[:2])
    if described.get("vocab_size", vocabulary.size) < vocabulary.size:
        raise UserError(
            f"{folder / 'config.json'} has vocab_size={described['vocab_size']}, vocab.json has "
            f"{vocabulary.size} pieces"
        )
    for field, number in (
        ("pad_token_id", pad),
        ("eos_token_id", eos),
        ("decoder_start_token_id", pad),
    ):
        if described.get(field, number) != number:
            raise UserError(
                f"{folder / 'config.json'} has {field}={described[field]}, vocab.json says {number}"
            )
    return vocabulary


def _check_added_tokens(folder: Path, size: int) -> None:
    """Raises: UserError if the tokenizer knows tokens that are not among the `size` of vocab.json."""
    added = folder / "added_tokens.json"
    config = folder / "tokenizer_config.json"
    tokens = _read_json(added) if added.exists() else {}
    described = _read_json(config).get("added_tokens_decoder", {}) if config.exists() else {}
    named = {added: tokens, config: {entry["content"]: int(i) for i, entry in described.items()}}
    for path, numbers in named.items():
        more = [token for token, number in numbers.items() if number >= size]
        if more:
            raise UserError(
                f"{path} has {more[0]!r}, of {len(more)} tokens that vocab.json does not have; only models "
                "without can be imported: take them out of that file, and their text is ordinary pieces"
            )


def _without_padding(
    arrays: Arrays, described: Mapping[str, Any], size: int, folder: Path
) -> Arrays:
    """The arrays without what stands behind the `size` tokens of vocab.json, to fill up a round number."""
    rows = described.get("vocab_size", size)
    if rows == size:
        return arrays
    log.warning(
        "%s has an embedding of %d rows and %d pieces; the last %d rows, which are no token, are left out",
        folder,
        rows,
        size,
        rows - size,
    )
    return {name: without_rows(name, array, rows, size) for name, array in arrays.items()}


def _model_config(
    described: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    vocabulary: MarianVocabulary,
    folder: Path,
) -> ModelConfig:
    """Our names for what config.json and the arrays say.

    Raises:
      UserError: what this package does not have, in one line; a ConfigError: a value out of range.
    """
    place = folder / "config.json"
    if described.get("model_type") != "marian":
        raise UserError(f"{place} has model_type={described.get('model_type')!r}, not 'marian'")
    for field in ("encoder_layers", "encoder_ffn_dim", "encoder_attention_heads", "d_model"):
        if not isinstance(described.get(field), int):
            raise UserError(
                f"{place} has {field}={described.get(field)!r}, which is no whole number"
            )
    expected = {
        "decoder_layers": described["encoder_layers"],
        "decoder_ffn_dim": described["encoder_ffn_dim"],
        "decoder_attention_heads": described["encoder_attention_heads"],
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "normalize_before": False,
        "normalize_embedding": False,
        "add_final_layer_norm": False,
        "static_position_embeddings": True,
    }
    for field, value in expected.items():
        if described.get(field, value) != value:
            raise UserError(
                f"{place} has {field}={described[field]!r}; only models with {value!r} there can be "
                "imported"
            )
    activation = described.get("activation_function")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{place} has activation_function={activation!r}; known are {', '.join(_ACTIVATIONS)}"
        )
    heads, d_model = described["encoder_attention_heads"], described["d_model"]
    _check_positions(arrays, d_model, folder)
    bias = "final_logits_bias" in arrays and final_logits_bias(arrays).any()
    table = embedding_table(arrays)
    if table.shape != (vocabulary.size, d_model):
        raise UserError(
            f"{folder} has an embedding of the shape {table.shape}, vocab.json and config.json say "
            f"{(vocabulary.size, d_model)}"
        )
    pad_row = table[vocabulary.marian_ids[PAD]]
    return ModelConfig(
        vocab_size=vocabulary.size,
        max_length=described.get("max_position_embeddings", _POSITIONS),
        num_layers=described["encoder_layers"],
        d_model=d_model,
        d_ff=described["encoder_ffn_dim"],
        num_heads=heads,
        d_k=d_model // heads,
        d_v=d_model // heads,
        dropout=float(described.get("dropout", 0.1)),
        attention_dropout=float(described.get("attention_dropout", 0.0)),
        activation_dropout=float(described.get("activation_dropout", 0.0)),
        activation=_ACTIVATIONS[activation],
        norm_epsilon=described.get("norm_epsilon", _NORM_EPSILON),
        logits_bias=bool(bias),
        decoder_start="pad" if pad_row.any() else "zero",
    )


def _check_positions(arrays: Mapping[str, np.ndarray], d_model: int, folder: Path) -> None:
    """Raises: UserError if the file has positions and they are no sinusoids."""
    for stack in ("encoder", "decoder"):
        name = f"model.{stack}.embed_positions.weight"
        if name in arrays:
            theirs = float32(arrays, name)
            if theirs.shape[1:] != (d_model,):
                raise UserError(
                    f"{folder}: {name} has the shape {theirs.shape}, not [.., {d_model}]"
                )
            theirs = theirs.take(concatenated_places(d_model), axis=1)
            if not np.allclose(theirs, sinusoids(len(theirs), d_model), atol=2e-3):  # float16
                raise UserError(f"{folder}: {name} are no sinusoids, so it cannot be imported")


def _run_config(folder: Path, described: Mapping[str, Any], model: ModelConfig) -> Config:
    """The config of a run folder that has no corpus yet."""
    generation, tokenizer = (
        _read_json(path) if path.exists() else {}
        for path in (folder / "generation_config.json", folder / "tokenizer_config.json")
    )
    search = {**described, **generation}
    languages = [tokenizer.get(f"{side}_lang") or side for side in ("source", "target")]
    if languages[0] == languages[1]:  # from and to a group of languages
        languages = ["source", "target"]
    alpha = search.get("length_penalty")
    return Config(
        model=model,
        data=DataConfig(
            path="{split}.{lang}",
            source_lang=languages[0],
            target_lang=languages[1],
            vocab_size=model.vocab_size,
            max_length=model.max_length,
        ),
        decode=DecodeConfig(
            beam_size=search.get("num_beams") or 4,
            alpha=1.0 if alpha is None else float(alpha),
        ),
    )


def _vocabulary_file(vocabulary: MarianVocabulary) -> bytes:
    """The run folder's vocabulary.model: one of ours that was exported becomes itself again."""
    source, target, _ = vocabulary.files
    if source == target:
        plain = Vocabulary(source)
        if plain.special_ids == vocabulary.special_ids and plain.pieces == vocabulary.pieces:
            return source
    return vocabulary.pack()


def _as_marian(vocabulary: Vocabulary, model: bytes) -> MarianVocabulary:
    """The same pieces in Marian's order: EOS, UNKNOWN, the others, PAD, which CTranslate2 drops."""
    pad, eos, unknown, *others = vocabulary.pieces
    table = {piece: number for number, piece in enumerate([eos, unknown, *others, pad])}
    return MarianVocabulary(model, model, table)


def _check_can_be_marian(config: ModelConfig, workdir: Path) -> None:
    expected = {
        "norm_position": "post",
        "positions": "sinusoidal",
        "d_k": config.d_model // config.num_heads,
        "d_v": config.d_model // config.num_heads,
    }
    for field, value in expected.items():
        if getattr(config, field) != value:
            raise UserError(
                f"{workdir} has config.model.{field}={getattr(config, field)!r}; a MarianMTModel of its "
                f"size has {value!r}, so it cannot be exported"
            )
    if config.d_model % config.num_heads:
        raise UserError(
            f"{workdir} has config.model.d_model={config.d_model}, which its {config.num_heads} heads do "
            "not divide, so it cannot be exported"
        )


def _descriptions(config: Config, table: Mapping[str, int]) -> dict[str, Any]:
    """The JSON files beside the weights, by name."""
    model, data = config.model, config.data
    pad, eos = table["<pad>"], table["</s>"]
    positions = max(_POSITIONS, data.max_length + config.decode.extra_length)
    tokens = {"pad_token_id": pad, "eos_token_id": eos, "decoder_start_token_id": pad}
    search = {
        "num_beams": config.decode.beam_size,
        "length_penalty": config.decode.alpha,
        "max_length": positions,
        "bad_words_ids": [[pad]],
        "forced_eos_token_id": eos,
    }
    activation = next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == model.activation)
    sizes = {
        f"{stack}_{field}": value
        for stack in ("encoder", "decoder")
        for field, value in (
            ("layers", model.num_layers),
            ("ffn_dim", model.d_ff),
            ("attention_heads", model.num_heads),
        )
    }
    return {
        "config.json": {
            "architectures": ["MarianMTModel"],
            "model_type": "marian",
            "is_encoder_decoder": True,
            "dtype": "float32",
            "vocab_size": model.vocab_size,
            "decoder_vocab_size": model.vocab_size,
            "d_model": model.d_model,
            **sizes,
            "activation_function": activation,
            "dropout": model.dropout,
            "attention_dropout": model.attention_dropout,
            "activation_dropout": model.activation_dropout,
            "max_position_embeddings": positions,
            "scale_embedding": True,
            "share_encoder_decoder_embeddings": True,
            "tie_word_embeddings": True,
            "static_position_embeddings": True,
            "normalize_before": False,
            "normalize_embedding": False,
            "add_final_layer_norm": False,
            "norm_epsilon": model.norm_epsilon,  # for our own importer; the others have 1e-5
            **tokens,
            "forced_eos_token_id": eos,
        },
        "generation_config.json": {**tokens, **search},
        "tokenizer_config.json": {
            "tokenizer_class": "MarianTokenizer",
            "source_lang": data.source_lang,
            "target_lang": data.target_lang,
            "unk_token": "<unk>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "model_max_length": data.max_length,
            "separate_vocabs": False,
            "clean_up_tokenization_spaces": False,
        },
    }


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no {path}; --input is the folder of a MarianMTModel") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
