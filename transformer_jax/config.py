# SPDX-License-Identifier: Apache-2.0
"""What a run is made of: the schema of a config, its defaults (the paper's base model) and its checks.

Outside, a config is an `ml_collections.ConfigDict` that files and flags can change; inside, it is
the frozen dataclasses of this module. Those check themselves, however they are made, so that a wrong
value travels nowhere:

    config = default_config()            # ConfigDict, the defaults below
    config.model.d_model = 256
    run = resolve(config)                # Config, checked; raises ConfigError
    ModelConfig(norm_position="Pre")     # raises ConfigError, and so does dataclasses.replace
"""

import dataclasses
import difflib
import json
import math
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import ml_collections

from transformer_jax.errors import UserError
from transformer_jax.files import with_home

ATTENTION_IMPLEMENTATIONS = ("reference", "xla", "xla_chunked", "pallas", "mosaic_gpu")
PRECISIONS = ("float32", "int16", "bfloat16", "int8")  # that a search multiplies in


class ConfigError(UserError):
    """A value that cannot work. The message is one line: the field, the value, what is allowed."""


Rule = tuple[str, Callable[[Any], bool]]  # a sentence for the user, the test


def _above(least: int) -> Rule:
    return f"a whole number above {least}", lambda value: value > least


def _one_of(*names: str) -> Rule:
    return "one of " + ", ".join(names), lambda value: value in names


_ANY: Rule = ("", lambda value: True)
_POSITIVE = _above(0)
_POSITIVE_REAL: Rule = ("above 0, and finite", lambda value: 0 < value < math.inf)
_NOT_NEGATIVE: Rule = ("0 or more, and finite", lambda value: 0 <= value < math.inf)
_RATE: Rule = ("a number from 0 to below 1", lambda value: 0.0 <= value < 1.0)
_SEED: Rule = ("a whole number from 0 to 2^32 - 1", lambda value: 0 <= value < 2**32)
_AXIS: Rule = ("a number of devices, or -1 for all that are left", lambda n: n > 0 or n == -1)
_COVERAGE: Rule = ("a number from 0.98 to 1", lambda value: 0.98 <= value <= 1.0)
_SPLITS: Rule = (
    "names for train, validation and test, '' for a split that there is not",
    lambda value: set(value) == {"train", "validation", "test"},
)


def _field(default: Any, rule: Rule, **metadata: Any) -> Any:
    """A field: its default, and what its value may be beyond its type.

    `before`: what a config.json means that does not have it, where that is not the default.
    """
    return dataclasses.field(default=default, metadata={"rule": rule, **metadata})


def _place() -> Any:
    """A field that names a file or folder; ~ is the home folder. Empty: none."""
    return dataclasses.field(default="", metadata={"place": True})


@dataclasses.dataclass(frozen=True)
class _Checked:
    """Checks the type and the rule of every field when an instance is made."""

    _name: ClassVar[str] = "config"  # of the section, in messages

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name = f"{self._name}.{field.name}"
            value = _of_type(field.type, getattr(self, field.name), name)
            if field.metadata.get("place"):
                value = with_home(value)
            object.__setattr__(self, field.name, value)
            allowed, holds = field.metadata.get("rule", _ANY)
            if not holds(value):
                raise ConfigError(f"{name}={value!r} is not allowed; it must be {allowed}")


def _of_type(expected: Any, value: Any, name: str) -> Any:
    """The value, an int as a float where that is expected; True and False are no numbers."""
    if typing.get_origin(expected) is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{name}={value!r} must map names to names")
        return {str(key): str(entry) for key, entry in value.items()}
    if isinstance(value, expected) and (expected is bool or not isinstance(value, bool)):
        return value
    numbers_of = {int: numbers.Integral, float: numbers.Real}.get(expected)  # NumPy's, too
    if numbers_of and isinstance(value, numbers_of) and not isinstance(value, bool):
        return expected(value)
    raise ConfigError(
        f"{name}={value!r} is of type {type(value).__name__}; "
        f"it must be of type {expected.__name__}"
    )


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Checked):
    """The architecture: section 3 and table 3 of the paper."""

    _name = "config.model"
    vocab_size: int = _field(37_000, _POSITIVE)  # follows data.vocab_size
    max_length: int = _field(256, _POSITIVE)  # follows data's; the size of a learned position table
    num_layers: int = _field(6, _POSITIVE)  # N
    d_model: int = _field(512, _POSITIVE)  # D
    d_ff: int = _field(2048, _POSITIVE)  # F
    num_heads: int = _field(8, _POSITIVE)  # H
    d_k: int = _field(64, _POSITIVE)  # K
    d_v: int = _field(64, _POSITIVE)  # V
    dropout: float = _field(0.1, _RATE)  # on sublayers' outputs, sums of embeddings and positions
    attention_dropout: float = _field(0.0, _RATE)  # on the attention weights; not in the paper
    activation_dropout: float = _field(0.0, _RATE)  # on the feed-forward's hidden units; the same
    activation: str = _field("relu", _one_of("relu", "gelu", "swish"))
    norm_position: str = _field("post", _one_of("post", "pre"))
    positions: str = _field("sinusoidal", _one_of("sinusoidal", "learned"))
    norm_epsilon: float = _field(1e-6, _POSITIVE_REAL)  # added to layer normalisation's variance
    logits_bias: bool = False  # a bias on the softmax's input; not in the paper, but in Marian
    decoder_start: str = _field("zero", _one_of("zero", "pad"))  # zeros, or PAD's embedding
    # Of the computation; auto: bfloat16 on TPUs and on GPUs that multiply it, float32 elsewhere.
    dtype: str = _field("auto", _one_of("auto", "float32", "bfloat16"))
    # Of attention_kernels; auto: the best on the device. Changes nothing of what is learned.
    attention_implementation: str = _field("auto", _one_of("auto", *ATTENTION_IMPLEMENTATIONS))


@dataclasses.dataclass(frozen=True)
class DataConfig(_Checked):
    """The corpus and how it becomes batches: section 5.1."""

    _name = "config.data"
    # A TFDS name is such as wmt14_translate/de-en.
    source: str = _field("text", ("phrasebook, text or a TFDS name", bool))
    path: str = _place()  # of text: a template with {split} and {lang}, such as data/{split}.{lang}
    splits: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "validation": "validation", "test": "test"},
        metadata={"rule": _SPLITS},
    )
    source_lang: str = "en"
    target_lang: str = "de"
    vocab_size: int = _field(37_000, _above(3))
    vocab_type: str = _field("bpe", _one_of("bpe", "unigram"))
    vocab_path: str = _place()  # a sentencepiece model, with rules of its own, instead of learning
    # What a learned vocabulary does to text before it divides it, in translating, too. same_look: text
    # that looks the same has the same ids (data/normalization.py); identity: only the same text has;
    # sentencepiece's own rules make other characters as well, such as "m2" of "m²".
    normalization: str = _field(
        "same_look", _one_of("same_look", "identity", "nfkc", "nmt_nfkc"), before="identity"
    )
    # The part of the text's characters, counted as often as they occur, that are pieces. The others
    # are unknown, or their UTF-8 bytes with byte_fallback, which makes 256 pieces of bytes.
    character_coverage: float = _field(1.0, _COVERAGE)
    byte_fallback: bool = False
    max_length: int = _field(256, _above(1))  # longer sentences, in tokens and EOS, are left out
    batch_tokens: int = _field(25_000, _POSITIVE)  # a step's source positions, and as many target's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source_lang == self.target_lang:
            raise ConfigError(
                f"config.data.target_lang={self.target_lang!r} is also the source language; "
                "it must be another one"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Checked):
    """Adam and its schedule: section 5.3."""

    _name = "config.optimizer"
    warmup_steps: int = _field(4_000, _POSITIVE)
    peak_rate: float = _field(0.0, _NOT_NEGATIVE)  # 0: the paper's, (D * warmup_steps)^-0.5
    beta1: float = _field(0.9, _RATE)
    beta2: float = _field(0.98, _RATE)
    epsilon: float = _field(1e-9, _POSITIVE_REAL)


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Checked):
    """The loop: sections 5.1 to 5.4."""

    _name = "config.train"
    num_steps: int = _field(100_000, _POSITIVE)
    log_every: int = _field(100, _POSITIVE)
    eval_every: int = _field(5_000, _POSITIVE)
    checkpoint_every: int = _field(1_500, _POSITIVE)  # the paper: 10 minutes, at 0.4 s a step
    keep: int = _field(5, _POSITIVE)  # the last checkpoints, which are averaged at the end
    accumulate: int = _field(1, _POSITIVE)  # a step's batch in so many pieces, to save memory
    seed: int = _field(0, _SEED)
    init_from: str = _place()  # a run folder: weights, architecture and vocabulary to start from
    label_smoothing: float = _field(0.1, _RATE)
    logits_chunk: int = _field(0, _NOT_NEGATIVE)  # tokens whose logits exist at once; 0: all
    on_bad_step: str = _field("stop", _one_of("stop", "skip"))  # see training/step.py, MOST_LOSS
    remat: bool = False  # compute each layer again in the backward pass, to save memory
    # Of the copy of the weights that a step computes with.
    param_dtype: str = _field("float32", _one_of("float32", "bfloat16"))


@dataclasses.dataclass(frozen=True)
class DecodeConfig(_Checked):
    """Beam search: section 6.1."""

    _name = "config.decode"
    beam_size: int = _field(4, _POSITIVE)
    alpha: float = _field(0.6, ("a finite number", math.isfinite))
    extra_length: int = _field(50, _NOT_NEGATIVE)  # a translation's tokens beyond its source's


@dataclasses.dataclass(frozen=True)
class MeshConfig(_Checked):
    """How many devices along each axis of the mesh; -1 (one axis at most): all that are left."""

    _name = "config.mesh"
    data: int = _field(-1, _AXIS)
    fsdp: int = _field(1, _AXIS)
    tensor: int = _field(1, _AXIS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.data, self.fsdp, self.tensor).count(-1) > 1:
            raise ConfigError(
                f"config.mesh={self} has more than one -1; one axis takes what is left"
            )


# What may differ when a run goes on, besides the mesh and the search: none of it changes batches, or
# what the model learns from one.
RESUMABLE_FIELDS = {
    "model.attention_implementation",
    "train.num_steps",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep",
    "train.accumulate",
    "train.logits_chunk",
    "train.on_bad_step",
    "train.remat",
}


# Of config.data, for learning a vocabulary: a folder that has one keeps them.
LEARNING_FIELDS = "normalization", "character_coverage", "byte_fallback"

# What may differ, too, as long as it leads to the same: the text, the vocabulary, the first weights.
PLACES = {"data.path", "data.vocab_path", "train.init_from"}


@dataclasses.dataclass(frozen=True)
class Config(_Checked):
    """Everything that a run is made of; `config.json` of its folder."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        # Each token and each position needs a row of its table.
        tables = ["vocab_size", *(["max_length"] if self.model.positions == "learned" else [])]
        for name in tables:
            rows, needed = getattr(self.model, name), getattr(self.data, name)
            if rows < needed:
                raise ConfigError(
                    f"config.model.{name}={rows} is not allowed; it must be at least "
                    f"config.data.{name}={needed}"
                )

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
    """What an earlier version did not write, with the value that means: as it was then."""
    if not isinstance(config, Mapping):
        return config
    filled = dict(config)
    for section, defaults in dataclasses.asdict(Config()).items():
        if isinstance(config.get(section), Mapping):
            fields = dataclasses.fields(getattr(Config(), section))
            then = {f.name: f.metadata["before"] for f in fields if "before" in f.metadata}
            filled[section] = {**defaults, **then, **config[section]}
    return filled


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
    # Not a rule of DataConfig, whose defaults are this: only what trains needs files.
    if run.data.source == "text" and not run.data.path:
        raise ConfigError(
            "config.data.path='' names no files; give a template, such as "
            "--config.data.path='data/{split}.{lang}'"
        )
    return run


def _build(kind: Any, values: Mapping[str, Any], path: str) -> Any:
    """An instance of the dataclass `kind` from a mapping that has all its fields and no other."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"config.{path.rstrip('.')}={values!r} is not a section of a config")
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(types))
    if unknown:
        near = difflib.get_close_matches(unknown[0], types, n=1)
        hint = f"did you mean {path}{near[0]}?" if near else f"known are {', '.join(types)}"
        raise ConfigError(f"config.{path}{unknown[0]} is not a field; {hint}")
    missing = sorted(set(types) - set(values))
    if missing:
        raise ConfigError(f"config.{path}{missing[0]} is missing; start from default_config()")
    sections = {name: of for name, of in types.items() if dataclasses.is_dataclass(of)}
    built = {name: _build(of, values[name], f"{name}.") for name, of in sections.items()}
    return kind(**{**values, **built})


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
    config.data.vocab_size = 300  # holds every character of the phrasebook, but no 256 bytes
    config.data.character_coverage = 1.0
    config.data.byte_fallback = False
    config.data.max_length = 64
    config.data.batch_tokens = 1024
    config.train.num_steps = 8
    config.train.log_every = 2
    config.train.eval_every = config.train.checkpoint_every = 4
    config.train.keep = 2
    return config
