# SPDX-License-Identifier: Apache-2.0
"""Marian's folders without Hugging Face: by a forward pass in plain NumPy, by round trips, by refusals."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.conftest import random_batch
from tests.formats.peers import SOURCE, TARGET, sentences, write_folder
from transformer_jax import checkpoints
from transformer_jax.config import Config, DataConfig, ModelConfig
from transformer_jax.data.batch import EOS, PAD, UNKNOWN, Batch
from transformer_jax.data.vocabulary import MarianVocabulary, Vocabulary, train_vocabulary
from transformer_jax.errors import UserError
from transformer_jax.formats import marian, safetensors
from transformer_jax.inference.padding import pad
from transformer_jax.model.transformer import Transformer


def logits_of(workdir: Path, batch: Batch) -> np.ndarray:
    _, model, _ = checkpoints.load_model(workdir)
    return np.asarray(model(batch))


def numpy_logits(folder: Path, source: list[int], target: list[int]) -> np.ndarray:
    """MarianMTModel's logits [T, VOCAB] of one pair, in the ids of vocab.json, written out."""
    config = json.loads((folder / "config.json").read_text())
    arrays = {
        name: np.asarray(array, np.float64)
        for name, array in safetensors.read(folder / "model.safetensors").items()
    }
    d_model, heads = config["d_model"], config["encoder_attention_heads"]
    table, scale = arrays["model.shared.weight"], math.sqrt(d_model) ** config["scale_embedding"]

    def linear(x, name):
        return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    def norm(x, name):
        variance = x.var(axis=-1, keepdims=True)
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-5)
        return x * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    def attention(x, memory, name, causal):
        split = lambda y: y.reshape(len(y), heads, -1).swapaxes(0, 1)  # noqa: E731
        query, key, value = (
            split(linear(y, f"{name}.{part}_proj"))
            for y, part in ((x, "q"), (memory, "k"), (memory, "v"))
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(d_model / heads)
        if causal:
            scores = np.where(np.tri(len(x)) > 0, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        out = (weights @ value).swapaxes(0, 1).reshape(len(x), -1)
        return linear(out, f"{name}.out_proj")

    def positions(length):
        angles = np.arange(length)[:, None] / 10_000 ** (2 * np.arange(d_model // 2) / d_model)
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    def feed_forward(x, place):
        hidden = linear(x, f"{place}.fc1")
        swish = config["activation_function"] == "swish"
        hidden = hidden / (1 + np.exp(-hidden)) if swish else np.maximum(hidden, 0)
        return norm(x + linear(hidden, f"{place}.fc2"), f"{place}.final_layer_norm")

    memory = table[source] * scale + positions(len(source))
    x = table[[config["decoder_start_token_id"], *target[:-1]]] * scale + positions(len(target))
    for layer in range(config["encoder_layers"]):
        place = f"model.encoder.layers.{layer}"
        out = attention(memory, memory, f"{place}.self_attn", causal=False)
        memory = feed_forward(norm(memory + out, f"{place}.self_attn_layer_norm"), place)
    for layer in range(config["decoder_layers"]):
        place = f"model.decoder.layers.{layer}"
        out = attention(x, x, f"{place}.self_attn", causal=True)
        x = norm(x + out, f"{place}.self_attn_layer_norm")
        out = attention(x, memory, f"{place}.encoder_attn", causal=False)
        x = feed_forward(norm(x + out, f"{place}.encoder_attn_layer_norm"), place)
    return x @ table.T + arrays["final_logits_bias"]


@pytest.mark.parametrize(
    "sizes",
    [
        {"activation": "relu", "start": "pad"},
        {"activation": "swish", "heads": 2, "layers": 1, "scaled": False},
    ],
)
def test_an_import_computes_what_marian_s_formulas_say(tmp_path: Path, sizes: dict) -> None:
    write_folder(tmp_path / "theirs", **sizes)
    marian.import_folder(tmp_path / "theirs", tmp_path / "run")
    vocabulary = Vocabulary.load(tmp_path / "run" / "vocabulary.model")
    assert isinstance(vocabulary, MarianVocabulary)
    (source,) = vocabulary.encode(sentences(1))
    (target,) = vocabulary.encode_targets(sentences(1, seed=5, words=TARGET))
    batch = Batch(*(pad([ids], 1, len(ids)) for ids in (source, target)), np.zeros(1, np.int32))
    got = logits_of(tmp_path / "run", jax.tree.map(jnp.asarray, batch))[0]
    theirs = vocabulary.marian_ids
    expected = numpy_logits(tmp_path / "theirs", theirs[source].tolist(), theirs[target].tolist())
    np.testing.assert_allclose(got, expected[:, theirs], atol=1e-4)


def test_there_and_back_again_is_the_same_to_the_bit(tmp_path: Path) -> None:
    write_folder(tmp_path / "theirs", layers=1)
    marian.import_folder(tmp_path / "theirs", tmp_path / "run")
    (tmp_path / "link").symlink_to("again")  # of a folder that is not there yet
    marian.export_folder(tmp_path / "run", tmp_path / "link")
    before, after = (
        safetensors.read(tmp_path / name / "model.safetensors") for name in ("theirs", "again")
    )
    assert set(before) == set(after)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    for name in ("source.spm", "target.spm"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    tables = [
        json.loads((tmp_path / name / "vocab.json").read_text()) for name in ("theirs", "again")
    ]
    assert tables[0] == tables[1]


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A run folder of our own model, with random weights, norms and biases included."""
    workdir = tmp_path_factory.mktemp("own")
    vocabulary = train_vocabulary(
        sentences(500) + sentences(500, words=TARGET),
        size=160,
        kind="bpe",
        path=workdir / "vocabulary.model",
    )
    model = ModelConfig(
        vocab_size=vocabulary.size,
        max_length=64,
        num_layers=2,
        d_model=24,
        d_ff=40,
        num_heads=4,
        d_k=6,
        d_v=6,
        activation="gelu",
    )
    data = DataConfig(path="{split}.{lang}", vocab_size=vocabulary.size, max_length=64)
    (workdir / "config.json").write_text(Config(model=model, data=data).to_json())
    rng = np.random.default_rng(0)
    params = nnx.to_pure_dict(nnx.state(Transformer(model, rngs=nnx.Rngs(0)), nnx.Param))
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf + 0.1 * rng.standard_normal(leaf.shape), np.float32), params
    )
    checkpoints.save_params(workdir, 5, params)
    return workdir


def test_our_own_model_comes_back_with_its_weights_vocabulary_and_logits(
    own: Path, tmp_path: Path
) -> None:
    marian.export_folder(own, tmp_path / "marian")
    marian.import_folder(tmp_path / "marian", tmp_path / "run")
    before, after = (checkpoints.load_config(folder) for folder in (own, tmp_path / "run"))
    assert after.model == dataclasses.replace(before.model, logits_bias=True, max_length=512)
    vocabularies = [
        (folder / "vocabulary.model").read_bytes() for folder in (own, tmp_path / "run")
    ]
    assert vocabularies[0] == vocabularies[1]
    (_, old), (_, new) = (checkpoints.load_params(folder) for folder in (own, tmp_path / "run"))
    # All but PAD's row, which Marian's decoder starts from: zero, and never chosen.
    bias = np.asarray(new["embedding"].pop("bias"))
    assert not np.delete(bias, PAD).any() and bias[PAD] <= -1e9
    assert not np.asarray(new["embedding"]["table"])[PAD].any()
    for params in (old, new):
        params["embedding"]["table"] = np.delete(
            np.asarray(params["embedding"]["table"]), PAD, axis=0
        )
    jax.tree.map(np.testing.assert_array_equal, new, old)
    batch = random_batch(0, vocabulary=160)
    logits = [
        np.delete(logits_of(folder, batch), PAD, axis=2) for folder in (own, tmp_path / "run")
    ]
    np.testing.assert_array_equal(*logits)


def test_marian_s_vocabulary_has_our_special_ids_and_a_model_for_each_side(tmp_path: Path) -> None:
    described = write_folder(tmp_path)
    marian.import_folder(tmp_path, tmp_path / "run")
    vocabulary = Vocabulary.load(
        tmp_path / "run" / "vocabulary.model", size=described["vocab_size"]
    )
    table = json.loads((tmp_path / "vocab.json").read_text())
    assert [vocabulary.pieces[number] for number in (PAD, EOS, UNKNOWN)] == [
        "<pad>",
        "</s>",
        "<unk>",
    ]
    assert [table[piece] for piece in vocabulary.pieces] == vocabulary.marian_ids.tolist()
    source, target = sentences(50), sentences(50, words=TARGET)
    assert vocabulary.decode(vocabulary.encode_targets(target)) == target
    assert vocabulary.decode(vocabulary.encode(source)) == source  # all pieces are in the table
    assert vocabulary.encode(target) != vocabulary.encode_targets(target)
    assert vocabulary.encode(["", "\u2603"])[0] == [EOS]
    assert vocabulary.encode(["\u2603"])[0][-2:] == [UNKNOWN, EOS]
    code = vocabulary.pieces.index(">>deu<<")
    assert vocabulary.encode([f">>deu<< {SOURCE[0]}"]) == [
        [code, *vocabulary.encode([SOURCE[0]])[0]]
    ]
    assert MarianVocabulary.unpack(vocabulary.pack()).fingerprint == vocabulary.fingerprint


def test_a_damaged_pack_is_one_line(tmp_path: Path) -> None:
    write_folder(tmp_path)
    marian.import_folder(tmp_path, tmp_path / "run")
    path = tmp_path / "run" / "vocabulary.model"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is no sentencepiece model, or damaged"):
        Vocabulary.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": None}, "d_model=None, which is no whole number"),
        ({"decoder_layers": 6}, "decoder_layers=6; only models with 2"),
        ({"decoder_ffn_dim": 99}, "decoder_ffn_dim=99"),
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings=False"),
        ({"normalize_before": True}, "normalize_before=True"),
        ({"activation_function": "gelu"}, "activation_function='gelu'; known are relu"),
        ({"model_type": "bart"}, "model_type='bart', not 'marian'"),
        ({"vocab_size": 7}, "vocab_size=7, vocab.json has"),
        ({"decoder_start_token_id": 3}, "decoder_start_token_id=3, vocab.json says"),
        ({"encoder_layers": 3, "decoder_layers": 3}, "no array model.decoder.layers.2"),
        (
            {"encoder_ffn_dim": 5, "decoder_ffn_dim": 5},
            "feed_forward/contract/kernel has the shape",
        ),
    ],
)
def test_a_model_that_we_cannot_be_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    described = write_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**described, **change}))
    with pytest.raises(UserError, match=message):
        marian.import_folder(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "rows", "columns", "message"),
    [
        ("model.shared.weight", 1, 0, "an embedding of the shape"),  # a row more
        ("model.shared.weight", -1, 0, "an embedding of the shape"),
        ("model.encoder.layers.0.fc1.weight", 0, -3, "feed_forward/expand/kernel has the shape"),
        ("model.encoder.layers.0.fc2.bias", -1, None, "feed_forward/contract/bias has the shape"),
        ("final_logits_bias", 0, -2, "embedding/bias has the shape"),
    ],
)
def test_weights_of_another_shape_are_refused(tmp_path, name, rows, columns, message):
    write_folder(tmp_path)
    arrays = safetensors.read(tmp_path / "model.safetensors")
    change = (rows,) if columns is None else (rows, columns)
    shape = [size + more for size, more in zip(arrays[name].shape, change, strict=True)]
    arrays[name] = np.resize(arrays[name], shape)
    safetensors.write(tmp_path / "model.safetensors", arrays, {"format": "pt"})
    with pytest.raises(UserError, match=message):
        marian.import_folder(tmp_path, tmp_path / "run")


def test_a_padded_embedding_is_imported_without_its_padding(tmp_path: Path, caplog) -> None:
    """As resize_token_embeddings(pad_to_multiple_of=...) leaves it: rows of no token, with a bias."""
    described = write_folder(tmp_path / "plain", layers=1)
    marian.import_folder(tmp_path / "plain", tmp_path / "expected")
    shutil.copytree(tmp_path / "plain", tmp_path / "padded")
    rows = described["vocab_size"] + 24
    (tmp_path / "padded" / "config.json").write_text(json.dumps({**described, "vocab_size": rows}))
    arrays = dict(safetensors.read(tmp_path / "plain" / "model.safetensors"))
    arrays["model.shared.weight"] = np.pad(arrays["model.shared.weight"], ((0, 24), (0, 0)))
    arrays["lm_head.weight"] = arrays["model.shared.weight"]
    arrays["final_logits_bias"] = np.pad(arrays["final_logits_bias"], ((0, 0), (0, 24)))
    safetensors.write(tmp_path / "padded" / "model.safetensors", arrays, {"format": "pt"})
    marian.import_folder(tmp_path / "padded", tmp_path / "run")
    assert "the last 24 rows, which are no token, are left out" in caplog.text
    (_, ours), (_, expected) = (
        checkpoints.load_params(tmp_path / name) for name in ("run", "expected")
    )
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_tokens_that_a_tokenizer_adds_are_named(tmp_path: Path, name: str) -> None:
    """Those of vocab.json that such a file repeats are no additions."""
    described = write_folder(tmp_path)
    size = described["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps({**described, "vocab_size": size + 1}))
    tokens = {"</s>": 0, "<note>": size}
    decoder = {str(number): {"content": token} for token, number in tokens.items()}
    content = tokens if name == "added_tokens.json" else {"added_tokens_decoder": decoder}
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{name} has '<note>', of 1 tokens that vocab.json"):
        marian.import_folder(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("config.json", "there is no .*config.json"),
        ("target.spm", "there is no .*target.spm"),
        ("model.safetensors", "neither model.safetensors nor pytorch_model.bin"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path, remove: str, message: str) -> None:
    write_folder(tmp_path)
    (tmp_path / remove).unlink()
    with pytest.raises(UserError, match=message):
        marian.import_folder(tmp_path, tmp_path / "run")


def test_positions_that_are_no_sinusoids_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    arrays = dict(safetensors.read(tmp_path / "model.safetensors"))
    arrays["model.encoder.embed_positions.weight"] = np.ones((128, 32), np.float32)
    safetensors.write(tmp_path / "model.safetensors", arrays, {})
    with pytest.raises(UserError, match=r"embed_positions\.weight are no sinusoids"):
        marian.import_folder(tmp_path, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_position": "pre"}, "norm_position='pre'; a MarianMTModel of its size has 'post'"),
        ({"positions": "learned"}, "positions='learned'"),
        ({"d_k": 5}, "d_k=5; a MarianMTModel of its size has 6"),
    ],
)
def test_a_model_that_marian_cannot_be_is_refused(
    own: Path, tmp_path: Path, change: dict, message: str
) -> None:
    config = checkpoints.load_config(own)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **change))
    (tmp_path / "config.json").write_text(config.to_json())
    with pytest.raises(UserError, match=message):
        marian.export_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
