# SPDX-License-Identifier: Apache-2.0
"""The contestants of decode.py: they translate the same token ids, and each has its own random weights.

    python -m experiments.benchmarks.decoders CONTESTANT FOLDER CONFIG

Each line on stdin is a number of sentences; the answer is a line of JSON about their translation
(worker.py). Every hypothesis is made `length` tokens long, EOS included, so that all do the same work.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.worker import Contestant, serve

_SEED = 0


@dataclasses.dataclass
class DecodeLap:
    """What was translated in one turn."""

    sentences: int = 0
    tokens: int = 0  # of the translations, EOS included

    def figures(self, seconds: float) -> dict[str, Any]:
        """Speeds."""
        return {
            "sentences": self.sentences,
            "tokens": self.tokens,
            "sentences_per_second": self.sentences / seconds,
            "tokens_per_second": self.tokens / seconds,
        }


def make(name: str, folder: Path, config: dict[str, Any]) -> Contestant:
    """The contestant of that name; only its own libraries are imported."""
    kind, _, precision = name.partition("-")
    batches = endless_batches(folder / "sources.npz", config["batch"])
    if kind == "ours":
        return Ours(batches, config, precision)
    if kind == "huggingface":
        return HuggingFace(batches, config, folder / "marian")
    return CTranslate2(batches, config, folder / "ctranslate2", precision)


def endless_batches(path: Path, size: int) -> Iterator[list[list[int]]]:
    """Neighbours in length, `size` at a time; consecutive batches have lengths from everywhere."""
    with np.load(path) as arrays:
        ids, lengths = arrays["ids"], arrays["lengths"]
    sources = [ids.tolist() for ids in np.split(ids, np.cumsum(lengths)[:-1])]
    sources.sort(key=len)
    batches = [sources[start : start + size] for start in range(0, len(sources), size)]
    golden = 0.6180339887 * np.arange(len(batches)) % 1.0
    order = np.argsort(np.argsort(golden))
    while True:
        yield from (batches[number] for number in order)


def translate_all(
    batches: Iterator[list[list[int]]], amount: int, translate: Any, length: int
) -> DecodeLap:
    """Batches until there were so many sentences; `translate` gives their outputs' lengths."""
    lap = DecodeLap()
    while lap.sentences < amount:
        batch = next(batches)
        lengths = translate(batch)
        assert len(lengths) == len(batch)
        assert set(lengths) == {length}, f"{sorted(set(lengths))} tokens instead of {length}"
        lap.sentences += len(batch)
        lap.tokens += sum(lengths)
    return lap


class Ours:
    """The search of transformer_jax, and of its translator all but the text."""

    def __init__(self, batches: Iterator[list[list[int]]], config: dict[str, Any], precision: str):
        """Random weights."""
        import jax
        from flax import nnx

        from transformer_jax import runtime
        from transformer_jax.config import ModelConfig
        from transformer_jax.model.transformer import Transformer

        runtime.set_up()
        self._batches, self._config = batches, config
        self._version = jax.__version__
        model = Transformer(ModelConfig(**config["model"]), rngs=nnx.Rngs(_SEED))
        structure, params = nnx.split(model, nnx.Param)
        self._mesh = jax.sharding.Mesh(jax.local_devices(), ("data",))
        self._params = jax.device_put(
            nnx.to_pure_dict(params), jax.NamedSharding(self._mesh, jax.P())
        )
        self._search = make_search(
            structure,
            self._params,
            beam_size=config["beam"],
            length=config["length"],
            mesh=self._mesh,
            precision=precision,
        )

    def versions(self) -> dict[str, str]:
        """What this contestant is made of."""
        return {"jax": self._version}

    def lap(self, amount: int) -> DecodeLap:
        """Translate at least so many sentences."""
        return translate_all(self._batches, amount, self._translate, self._config["length"])

    def _translate(self, batch: list[list[int]]) -> list[int]:
        from transformer_jax.inference.padding import group_by_length, pad

        longest = group_by_length([max(map(len, batch))], 2**20)[0].length
        source = pad(batch, self._config["batch"], longest)
        return np.asarray(self._search(source))[: len(batch)].tolist()


def make_search(
    structure: Any, params: Any, *, beam_size: int, length: int, mesh: Any, precision: str
) -> Any:
    """A function of sources: the lengths of their best hypotheses, none of which ends early."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from transformer_jax.inference.beam_search import beam_search

    def on_each_device(params, weights, source):
        model = nnx.merge(structure, params)
        rows = source.ids.shape[0]
        cross = model.read_source(source, weights)

        def step(ids, position, cache, context):
            return model.decode_step(ids, position, cache, *context, weights)

        result = beam_search(
            step,
            model.empty_cache(rows, beam_size, length),
            beam_size=beam_size,
            max_lengths=jnp.full(rows, length),
            length=length,
            results=1,
            eos=-1,  # no token: only the limit ends a hypothesis
            context=(cross, source.segments),
            cache_axis=3,
        )
        return result.lengths[:, 0]

    rows, whole = jax.P(mesh.axis_names), jax.P()
    search = jax.shard_map(
        on_each_device, mesh=mesh, in_specs=(whole, whole, rows), out_specs=rows, check_vma=False
    )
    make_weights = jax.jit(lambda params: nnx.merge(structure, params).search_weights(precision))
    return functools.partial(jax.jit(search), params, make_weights(params))


class HuggingFace:
    """MarianMTModel.generate."""

    def __init__(self, batches: Iterator[list[list[int]]], config: dict[str, Any], folder: Path):
        """The model in `folder`."""
        import torch
        import transformers

        torch.set_num_threads(os.cpu_count() or 1)
        self._batches, self._config, self._torch = batches, config, torch
        self._model = transformers.MarianMTModel.from_pretrained(folder).eval()
        self._versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def versions(self) -> dict[str, str]:
        """What this contestant is made of."""
        return self._versions

    def lap(self, amount: int) -> DecodeLap:
        """Translate at least so many sentences."""
        return translate_all(self._batches, amount, self._translate, self._config["length"])

    def _translate(self, batch: list[list[int]]) -> list[int]:
        tensors = [self._torch.tensor(ids) for ids in batch]
        source = self._torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=-1)
        length = self._config["length"]
        with self._torch.inference_mode():
            output = self._model.generate(
                source.clamp(min=0),
                attention_mask=(source >= 0).long(),
                num_beams=self._config["beam"],
                min_new_tokens=length,
                max_new_tokens=length,
                do_sample=False,
            )
        return [output.shape[1] - 1] * len(batch)  # without the token that it starts from


class CTranslate2:
    """ctranslate2.Translator, all cores on one batch."""

    def __init__(
        self,
        batches: Iterator[list[list[int]]],
        config: dict[str, Any],
        folder: Path,
        precision: str,
    ):
        """The converted model in `folder`, computed with in `precision`."""
        import ctranslate2

        self._batches, self._config = batches, config
        self._translator = ctranslate2.Translator(
            str(folder),
            device="cpu",
            compute_type=precision,
            inter_threads=1,
            intra_threads=os.cpu_count() or 1,
        )
        self._version = ctranslate2.__version__

    def versions(self) -> dict[str, str]:
        """What this contestant is made of."""
        return {"ctranslate2": self._version}

    def lap(self, amount: int) -> DecodeLap:
        """Translate at least so many sentences."""
        return translate_all(self._batches, amount, self._translate, self._config["length"])

    def _translate(self, batch: list[list[int]]) -> list[int]:
        length = self._config["length"]
        results = self._translator.translate_batch(
            [[*(token_of(number) for number in ids[:-1]), "</s>"] for ids in batch],
            beam_size=self._config["beam"],
            max_batch_size=self._config["batch"],
            min_decoding_length=length,
            max_decoding_length=length,
        )
        return [len(result.hypotheses[0]) for result in results]


def token_of(number: int) -> str:
    """CTranslate2 wants texts for tokens: any, since nobody reads these."""
    return f"t{number}"


def write_peers(folder: Path, sizes: dict[str, Any]) -> None:
    """A random MarianMTModel of our sizes in `folder`/marian, and the same for CTranslate2."""
    import ctranslate2
    from ctranslate2.converters.transformers import MarianMTLoader

    from experiments.benchmarks.torch_marian import make_model

    vocabulary = sizes["vocab_size"]
    # Marian's padding stands behind the vocabulary, and starts the translations.
    model = make_model(sizes | {"vocab_size": vocabulary + 1})
    for config in (model.config, model.generation_config):
        config.pad_token_id = config.decoder_start_token_id = vocabulary
        config.forced_eos_token_id = None
        config.use_cache = True
    model.save_pretrained(folder / "marian")
    spec = MarianMTLoader().get_model_spec(model)
    names = [token_of(number) for number in range(vocabulary)]
    names[1], names[2] = "</s>", "<unk>"
    spec.register_source_vocabulary(names)
    spec.register_target_vocabulary(names)
    spec.config.decoder_start_token = spec.config.eos_token = "</s>"
    spec.validate()
    spec.optimize()
    (folder / "ctranslate2").mkdir(exist_ok=True)
    spec.save(str(folder / "ctranslate2"))
    assert ctranslate2.contains_model(str(folder / "ctranslate2"))


if __name__ == "__main__":
    serve(make, *sys.argv[1:])
