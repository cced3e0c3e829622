# SPDX-License-Identifier: Apache-2.0
"""What a run is made of: the schema of a config, its defaults (the paper's base model) and its checks.

Outside, a config is an `ml_collections.ConfigDict` that files and flags can change; inside, it is
the frozen dataclasses of this module, so that nothing unchecked travels further than the door:

    config = default_config()            # ConfigDict, the defaults below
    config.model.d_model = 256
    run = resolve(config)                # Config, checked; raises ConfigError
"""

import dataclasses
import difflib
import json
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from transformer_jax.errors import UserError

PRECISIONS = ("float32", "int16", "bfloat16", "int8")  # that a search multiplies in


class ConfigError(UserError):
    """A value that cannot work. The message is one line: the field, the value, what is allowed."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture: section 3 and table 3 of the paper."""

    vocab_size: int = 37_000  # follows data.vocab_size
    max_length: int = 256  # follows data.max_length; the size of a learned position table
    num_layers: int = 6  # N
    d_model: int = 512  # D
    d_ff: int = 2048  # F
    num_heads: int = 8  # H
    d_k: int = 64  # K
    d_v: int = 64  # V
    dropout: float = 0.1  # on each sublayer's output and on the sums of embeddings and positions
    attention_dropout: float = 0.0  # on the attention weights; not in the paper
    activation_dropout: float = 0.0  # on the feed-forward's hidden units; not in the paper
    activation: str = "relu"
    norm_position: str = "post"
    positions: str = "sinusoidal"
    norm_epsilon: float = 1e-6  # added to the variance in layer normalisation
    logits_bias: bool = False  # a bias on the softmax's input; not in the paper, but in Marian
    decoder_start: str = "zero"  # the decoder's first input: the zero vector, or PAD's embedding
    dtype: str = "auto"  # of the computation: bfloat16 on accelerators, float32 on CPUs


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpus and how it becomes batches: section 5.1."""

    source: str = "text"  # phrasebook | text | a TFDS name such as wmt14_translate/de-en
    path: str = (
        ""  # of parallel text: a template with {split} and {lang}, such as data/{split}.{lang}
    )
    splits: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"}
    )
    source_lang: str = "en"
    target_lang: str = "de"
    vocab_size: int = 37_000
    vocab_type: str = "bpe"
    vocab_path: str = ""  # a sentencepiece model to use instead of training one
    max_length: int = 256  # sentences of more tokens, end mark included, are left out of training
    batch_tokens: int = 25_000  # a step's source positions, and as many target positions


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam and its schedule: section 5.3."""

    warmup_steps: int = 4_000
    peak_rate: float = (
        0.0  # the rate at the end of the warm-up; 0: the paper's (D * warmup_steps)^-0.5
    )
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop: sections 5.1 to 5.4."""

    num_steps: int = 100_000
    log_every: int = 100
    eval_every: int = 5_000
    checkpoint_every: int = 1_500  # steps; the paper: every 10 minutes, at 0.4 s a step
    keep: int = 5  # how many of the last checkpoints stay, and are averaged at the end
    accumulate: int = 1  # a step's batch is computed in so many pieces, to save memory
    seed: int = 0
    init_from: str = (
        ""  # a run folder whose weights, architecture and vocabulary training starts from
    )
    label_smoothing: float = 0.1
    logits_chunk: int = 0  # tokens whose logits exist at once; 0: all
    on_bad_step: str = "stop"  # or "skip"; training/step.py, MOST_LOSS, says what a bad step is
    remat: bool = False  # compute each layer again in the backward pass, to save memory
    param_dtype: str = "float32"  # of the copy of the weights that a step computes with


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Beam search: section 6.1."""

    beam_size: int = 4
    alpha: float = 0.6
    extra_length: int = 50  # a translation has at most the source's tokens and so many more


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices along each axis of the mesh; -1 (one axis at most): all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run is made of; `config.json` of its folder."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def to_json(self) -> str:
        """The resolved config as it stands in a run folder's `config.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> "Config":
        """The inverse of `to_json`. A field that is younger than the file has its default.

        Raises:
          ConfigError: it is not JSON, or not a config.
        """
        try:
            config = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"it is not JSON: {error}") from None
        return resolve(_with_younger_fields(config))


def _with_younger_fields(config: Any) -> Any:
    """What an earlier version did not write, with the default that means: as it was then."""
    if not isinstance(config, Mapping):
        return config
    filled = dict(config)
    for section, defaults in dataclasses.asdict(Config()).items():
        if isinstance(config.get(section), Mapping):
            filled[section] = {**defaults, **config[section]}
    return filled


ACTIVATIONS = ("relu", "gelu", "swish")

# What each value may be, beyond its type: (a sentence for the user, the test).
_POSITIVE = ("a whole number above 0", lambda value: value > 0)
_RATE = ("a number from 0 to below 1", lambda value: 0.0 <= value < 1.0)
_NOT_NEGATIVE = ("0 or more, and finite", lambda value: 0 <= value < math.inf)
_AXIS = ("a number of devices, or -1 for all that are left", lambda value: value > 0 or value == -1)


def _one_of(*names: str) -> tuple[str, Callable[[Any], bool]]:
    return "one of " + ", ".join(names), lambda value: value in names


_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **{
        f"model.{field}": _POSITIVE
        for field in ("max_length", "num_layers", "d_model", "d_ff", "num_heads", "d_k", "d_v")
    },
    **{f"model.{field}": _RATE for field in ("dropout", "attention_dropout", "activation_dropout")},
    "model.activation": _one_of(*ACTIVATIONS),
    "model.norm_position": _one_of("post", "pre"),
    "model.positions": _one_of("sinusoidal", "learned"),
    "model.norm_epsilon": ("above 0, and finite", lambda value: 0 < value < math.inf),
    "model.decoder_start": _one_of("zero", "pad"),
    "model.dtype": _one_of("auto", "float32", "bfloat16"),
    "data.source": ("phrasebook, text or a TFDS name", bool),
    "data.splits": (
        "names for train, validation and test, '' for a split that there is not",
        lambda value: set(value) == {"train", "validation", "test"},
    ),
    "data.vocab_size": ("a whole number above 3", lambda value: value > 3),
    "data.vocab_type": _one_of("bpe", "unigram"),
    "data.max_length": ("a whole number above 1", lambda value: value > 1),
    "data.batch_tokens": _POSITIVE,
    "optimizer.warmup_steps": _POSITIVE,
    "optimizer.peak_rate": _NOT_NEGATIVE,
    "optimizer.beta1": _RATE,
    "optimizer.beta2": _RATE,
    "optimizer.epsilon": ("above 0, and finite", lambda value: 0 < value < math.inf),
    **{
        f"train.{field}": _POSITIVE
        for field in (
            "num_steps",
            "log_every",
            "eval_every",
            "checkpoint_every",
            "keep",
            "accumulate",
        )
    },
    "train.seed": ("a whole number from 0 to 2^32 - 1", lambda value: 0 <= value < 2**32),
    "train.label_smoothing": _RATE,
    "train.logits_chunk": _NOT_NEGATIVE,
    "train.on_bad_step": _one_of("stop", "skip"),
    "train.param_dtype": _one_of("float32", "bfloat16"),
    "decode.beam_size": _POSITIVE,
    "decode.alpha": ("a finite number", math.isfinite),
    "decode.extra_length": _NOT_NEGATIVE,
    **{f"mesh.{axis}": _AXIS for axis in ("data", "fsdp", "tensor")},
}


def default_config() -> ml_collections.ConfigDict:
    """The defaults as a ConfigDict, locked: setting a key that does not exist raises."""
    config = ml_collections.ConfigDict(dataclasses.asdict(Config()))
    config.model.vocab_size = config.data.get_ref("vocab_size")
    config.model.max_length = config.data.get_ref("max_length")
    return config.lock()


def resolve(config: Mapping[str, Any]) -> Config:
    """The checked, frozen form of a config.

    Raises:
      ConfigError: a key is unknown or missing, or a value is of the wrong type or out of range.
    """
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    run: Config = _build(Config, config, "")
    for name, (allowed, holds) in _RULES.items():
        section, field = name.split(".")
        value = getattr(getattr(run, section), field)
        if not holds(value):
            raise ConfigError(f"config.{name}={value!r} is not allowed; it must be {allowed}")
    if run.data.source == "text" and not run.data.path:
        raise ConfigError(
            "config.data.path='' names no files; give a template, such as "
            "--config.data.path='data/{split}.{lang}'"
        )
    if run.data.source_lang == run.data.target_lang:
        raise ConfigError(
            f"config.data.target_lang={run.data.target_lang!r} is also the source language; "
            "it must be another one"
        )
    if list(dataclasses.astuple(run.mesh)).count(-1) > 1:
        raise ConfigError(
            f"config.mesh={run.mesh} has more than one -1; one axis takes what is left"
        )
    return run


def _build(kind: type, values: Mapping[str, Any], path: str) -> Any:
    """An instance of the dataclass `kind` from a mapping, each value checked against its type."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"config.{path.rstrip('.')}={values!r} is not a section of a config")
    types = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(types))
    if unknown:
        near = difflib.get_close_matches(unknown[0], types, n=1)
        hint = f"did you mean {path}{near[0]}?" if near else f"known are {', '.join(types)}"
        raise ConfigError(f"config.{path}{unknown[0]} is not a field; {hint}")
    missing = sorted(set(types) - set(values))
    if missing:
        raise ConfigError(f"config.{path}{missing[0]} is missing; start from default_config()")
    return kind(**{name: _check(values[name], types[name], path + name) for name in types})


def _check(value: Any, expected: Any, name: str) -> Any:
    if isinstance(expected, type) and dataclasses.is_dataclass(expected):
        return _build(expected, value, f"{name}.")
    if typing.get_origin(expected) is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"config.{name}={value!r} must map names to names")
        return {str(key): str(entry) for key, entry in value.items()}
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ConfigError(
            f"config.{name}={value!r} is of type {type(value).__name__}; "
            f"it must be of type {expected.__name__}"
        )
    return value


def shrink(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """The config itself for variant "", or for "tiny" a smoke test of it: one minute on a CPU.

    Tiny keeps the choices of the model and the recipe, makes their numbers small, and takes the built-in
    phrasebook, so that nothing is downloaded.

    Raises:
      ConfigError: the variant is another one.
    """
    if variant == "":
        return config
    if variant != "tiny":
        raise ConfigError(f"variant :{variant} does not exist; there is :tiny")
    config.model.num_layers = 1
    config.model.d_model = config.model.d_ff = 32
    config.model.num_heads = 2
    config.model.d_k = config.model.d_v = 16
    config.data.source = "phrasebook"
    config.data.splits = default_config().data.splits
    config.data.vocab_size = 300
    config.data.max_length = 64
    config.data.batch_tokens = 1024
    config.train.num_steps = 8
    config.train.log_every = 2
    config.train.eval_every = config.train.checkpoint_every = 4
    config.train.keep = 2
    return config
