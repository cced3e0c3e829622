# SPDX-License-Identifier: Apache-2.0
"""translate, evaluate and average as a user runs them: the output, the exit code, the error's line."""

import dataclasses
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import sacrebleu

from transformer_jax import evaluation
from transformer_jax.checkpoints import Checkpoints
from transformer_jax.config import Config, default_config, resolve
from transformer_jax.data.vocabulary import train_vocabulary
from transformer_jax.errors import UserError
from transformer_jax.evaluation import evaluate, load_text, make_likelihood
from transformer_jax.inference.hypotheses import SearchOptions, perplexity
from transformer_jax.inference.translator import Translator, _common_vocabulary
from transformer_jax.training.step import initial_state

ROOT = Path(__file__).parents[1]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eins", "zwei", "drei", "vier"]
SOURCES = ["one two three", "", "four five six seven", "seven one"]
REFERENCES = ["eins zwei drei", "", "vier drei zwei eins eins", "zwei eins drei vier"]


def run(module: str, *flags: str, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """One command, on one CPU device, as if started in a shell."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        [sys.executable, "-m", f"transformer_jax.{module}", *flags],
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env=environment,
        timeout=300,
        check=False,
    )


def one_device() -> jax.sharding.Mesh:
    """The mesh of a command on one CPU device."""
    axes = "data", "fsdp", "tensor"
    devices = np.array(jax.devices()[:1]).reshape(1, 1, 1)
    return jax.sharding.Mesh(devices, axes, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def translator_of(workdir, checkpoint: str | None = "latest", **options) -> Translator:
    """What a command translates with, here."""
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
    return Translator.from_workdir(workdir, checkpoint, mesh=mesh, **options)


def the_error(result: subprocess.CompletedProcess) -> str:
    """The one line on stderr of a command that failed as it should, behind that of its weights."""
    text = result.stderr.decode()
    assert result.returncode == 2, text
    [error] = said(text)
    assert error.startswith("error: ")
    assert not result.stdout
    return error


def said(errors: str) -> list[str]:
    """The lines on stderr, but for the first where it says which weights are used."""
    return [line for line in errors.splitlines() if not line.startswith("weights: /")]


@pytest.fixture(scope="module")
def config() -> Config:
    """A tiny model."""
    config = default_config()
    config.data.source = "phrasebook"
    config.data.vocab_size = 64
    config.data.max_length = 32
    config.model.num_layers = 1
    config.model.d_model = 16
    config.model.d_ff = 24
    config.model.num_heads = 2
    config.model.d_k = config.model.d_v = 8
    config.decode.extra_length = 4
    return resolve(config)


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory) -> Path:
    """A run folder as training leaves it, with random weights after steps 3 and 7."""
    workdir = tmp_path_factory.mktemp("run")
    (workdir / "config.json").write_text(config.to_json())
    train_vocabulary(
        [" ".join(WORDS[(i + j) % 11] for j in range(4)) for i in range(50)],
        size=64,
        kind="bpe",
        path=workdir / "vocabulary.model",
    )
    (workdir / "data").mkdir()
    (workdir / "data" / "test.source.txt").write_text("\n".join(SOURCES) + "\n")
    (workdir / "data" / "test.target.txt").write_text("\n".join(REFERENCES) + "\n")
    state = initial_state(config, one_device())
    with Checkpoints(workdir, every=1, keep=2) as checkpoints:
        for step, scale in ((3, 1.0), (7, 3.0)):
            params = jax.tree.map(lambda leaf, scale=scale: scale * leaf, state.params)
            number = jax.device_put(jax.numpy.int32(step), state.step.sharding)
            checkpoints.save(type(state)(number, params, state.optimizer))
        checkpoints.wait()
    return workdir


def test_translate_writes_a_line_for_every_line(workdir):
    text = "one two\r\n\n three four\u2028five\x0b\nseven"  # three line feeds, no last one
    result = run("translate", f"--workdir={workdir}", stdin=text.encode())
    assert result.returncode == 0, result.stderr.decode()
    lines = result.stdout.decode().split("\n")
    assert len(lines) == 5 and lines[-1] == "" and lines[1] == ""
    assert lines[:4] == translator_of(workdir).translate(text.split("\n"))
    assert not any("\r" in line for line in lines)


def test_translate_reads_and_writes_files_and_old_checkpoints(workdir, tmp_path):
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_text("one two three\nfour five\n")
    result = run(
        "translate",
        *(f"--workdir={workdir}", "--checkpoint=3", "--beam_size=1", "--alpha=1"),
        *(f"--input={source}", f"--output={output}"),
    )
    assert result.returncode == 0 and not result.stdout, result.stderr.decode()
    expected = Translator.from_workdir(workdir, 3).translate(
        ["one two three", "four five"], beam_size=1, alpha=1.0
    )
    assert output.read_text() == "".join(f"{line}\n" for line in expected)
    assert {path.name for path in tmp_path.iterdir()} == {"in.txt", "out.txt"}


@pytest.mark.slow  # tests/inference has the law
def test_translate_and_evaluate_in_eight_bits(workdir):
    flags = f"--workdir={workdir}", "--checkpoint=7", "--precision=int8"
    result = run("translate", *flags, stdin="".join(f"{line}\n" for line in SOURCES).encode())
    assert result.returncode == 0, result.stderr.decode()
    eight_bits = translator_of(workdir, "7", precision="int8").translate(SOURCES)
    assert result.stdout.decode().splitlines() == eight_bits
    scored = run("evaluate", *flags)
    assert scored.returncode == 0, scored.stderr.decode()
    written = workdir / "translations" / "test.7.txt"
    assert written.read_text().splitlines() == eight_bits
    written.unlink()  # the run folder is other tests', too
    assert eight_bits != translator_of(workdir, "7").translate(SOURCES)


def test_translate_of_nothing_is_nothing(workdir):
    result = run("translate", f"--workdir={workdir}")
    assert (result.returncode, result.stdout) == (0, b"")


def test_broken_utf8_names_the_file_and_the_line(workdir, tmp_path):
    source, output = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_bytes(b"fine\nst\xe4rt\n")
    result = run("translate", f"--workdir={workdir}", f"--input={source}", f"--output={output}")
    assert f"{source}, line 2, is not UTF-8 (byte 3: 0xe4)" in the_error(result)
    assert not output.exists()


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        ("translate", ["--workdir=/nowhere"], "/nowhere is no run folder"),
        ("translate", ["--workdir={run}", "--checkpoint=average"], "no averaged checkpoint"),
        ("translate", ["--workdir={run}", "--beam_size=0"], "beam_size"),
        ("translate", ["--workdir={run}", "--beam_size=many"], "many"),
        ("translate", ["--workdir={run}", "--bean_size=4"], "bean_size"),
        ("translate", ["--workdir={run}", "in.txt"], "unexpected argument 'in.txt'"),
        ("translate", [], "workdir"),
        ("translate", ["--workdir={run}", "--n_best=9", "--beam_size=4"], "n_best=9 is more than"),
        (
            "translate",
            ["--workdir={run}", "--top_k=5"],
            "--top_k=5 has no meaning without --sample",
        ),
        ("translate", ["--workdir={run}", "--interactive", "--output=x"], "leave out --input and"),
        ("translate", ["--workdir={run}", "--checkpoint=3,5"], "--checkpoint=5 does not exist"),
        ("score", ["--workdir={run}", "--source=/a"], "target"),
        (
            "score",
            ["--workdir={run}", "--source=/nowhere", "--target=/b"],
            "/nowhere cannot be read",
        ),
        ("evaluate", ["--workdir={run}", "--split=validation"], "no validation split"),
        ("evaluate", ["--workdir={run}", "--split=train"], "split"),
        ("evaluate", ["--workdir={run}", "--tokenize=13b"], "--tokenize=13b is unknown; allowed"),
        ("average", ["--workdir={run}", "--last=3"], "--last=3"),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in (
                (
                    "translate",
                    ["--workdir={run}", "--checkpoint=5"],
                    "--checkpoint=5 does not exist",
                ),
                (
                    "translate",
                    ["--workdir={run}", "--input=/nowhere.txt"],
                    "/nowhere.txt cannot be read",
                ),
                ("translate", ["--workdir={run}", "--output=/nowhere/x"], "no folder /nowhere"),
                ("translate", ["--workdir={run}", "--precision=int3"], "precision"),
                (
                    "translate",
                    ["--workdir={run}", "--sample", "--temperature=0"],
                    "temperature=0.0 is not",
                ),
                (
                    "translate",
                    ["--workdir={run}", "--sample", "--beam_size=2"],
                    "no meaning in sampling",
                ),
                (
                    "translate",
                    ["--workdir={run}", "--prefix_file=/nowhere"],
                    "/nowhere cannot be read",
                ),
                ("evaluate", ["--workdir=/nowhere"], "/nowhere is no run folder"),
                (
                    "evaluate",
                    ["--workdir={run}", "--source=a"],
                    "--source and --reference go together",
                ),
                ("average", ["--workdir={run}", "--last=0"], "last"),
            )
        ),
    ],
)
def test_a_mistake_ends_in_one_line_and_exit_code_2(workdir, module, flags, message):
    flags = [flag.format(run=workdir) for flag in flags]
    assert message in the_error(run(module, *flags, stdin=b"one\n"))


@pytest.mark.parametrize("module", ["translate", "evaluate", "average", "score"])
def test_help_explains_the_flags(module):
    result = run(module, "--help")
    assert result.returncode == 0
    assert f"python -m transformer_jax.{module} --workdir=" in result.stdout.decode()
    assert "The run folder that training wrote" in result.stdout.decode()


def test_a_reader_that_leaves_early_causes_no_traceback(workdir):
    command = (
        f"{sys.executable} -m transformer_jax.translate --workdir={workdir} | "
        f"{sys.executable} -c ''; echo ${{PIPESTATUS[0]}}"
    )
    text = b"one two three four\n" * 20_000  # more than a pipe holds
    result = subprocess.run(
        ["bash", "-c", command],
        input=text, capture_output=True, cwd=ROOT, check=False, timeout=300,
    )  # fmt: skip
    assert result.stdout == b"0\n" and said(result.stderr.decode()) == []


def test_evaluate_prints_one_line_of_json(workdir):
    result = run("evaluate", f"--workdir={workdir}", "--checkpoint=3", "--tokenize=none")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.count(b"\n") == 1
    scores = json.loads(result.stdout)
    written = (workdir / "translations" / "test.3.txt").read_text().split("\n")
    assert written[-1] == "" and len(written) == 5 and written[1] == ""
    bleu = sacrebleu.metrics.BLEU(tokenize="none").corpus_score(written[:4], [REFERENCES])
    assert scores["bleu"] == pytest.approx(bleu.score, abs=1e-3)
    assert scores["bleu_interval"][0] <= scores["bleu_interval"][1]
    assert scores["signature"].startswith("nrefs:1|bs:1000|seed:12345|case:mixed|eff:no|tok:none")
    assert scores["sentences"] == 4 and scores["step"] == 3 and scores["checkpoint"] == "3"
    assert scores["chrf"] > 0 and scores["seconds"] > 0
    assert 30 < scores["perplexity"] < 200, "random weights guess among 64 pieces"


def test_evaluate_scores_files_without_keeping_translations(workdir, tmp_path):
    (tmp_path / "a").write_text("one two\nthree\n")
    (tmp_path / "b").write_text("eins zwei\nDREI")
    text = load_text(workdir, "test", str(tmp_path / "a"), str(tmp_path / "b"))
    scores = evaluate(workdir, text, checkpoint="7", lowercase=True)
    assert scores["sentences"] == 2 and "case:lc" in scores["signature"]
    assert not list(workdir.glob("translations/*.7.txt"))


def test_two_references_count_and_a_folder_that_cannot_be_written_costs_no_score(
    workdir, tmp_path, monkeypatch, caplog
):
    """As sacrebleu scores the same lines; the perplexity is that of the first."""
    other = ["eins zwei", "nichts", "vier eins eins fünf", "zwei eins"]
    for name, lines in (("a", SOURCES), ("b", REFERENCES), ("c", other)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    source, *references = [str(tmp_path / name) for name in "abc"]
    written = []

    def refuse(path, lines):
        written.extend(lines)
        raise UserError(f"{path} cannot be written: Permission denied")

    monkeypatch.setattr(evaluation, "write_lines", refuse)
    monkeypatch.setattr(logging.getLogger("transformer_jax"), "propagate", True)
    text = load_text(workdir, "test", source, references)
    assert (text.sources, text.references) == (SOURCES, [REFERENCES, other])
    both = evaluate(workdir, dataclasses.replace(text, split="test"), checkpoint="7")
    assert "translations are not kept: " in caplog.text
    assert "test.7.txt cannot be written: Permission denied" in caplog.text
    expected = sacrebleu.corpus_bleu(written, [REFERENCES, other])
    assert both["bleu"] == pytest.approx(expected.score, abs=1e-3)
    assert both["signature"].startswith("nrefs:2|")
    first = perplexity(translator_of(workdir, "7").score(SOURCES, REFERENCES))
    assert both["perplexity"] == pytest.approx(first, rel=1e-4)


def test_evaluate_searches_as_it_is_told(workdir):
    flags = ("--checkpoint=7", "--beam_size=1", "--alpha=2")
    assert run("evaluate", f"--workdir={workdir}", *flags).returncode == 0
    written = (workdir / "translations" / "test.7.txt").read_text().split("\n")[:-1]
    (workdir / "translations" / "test.7.txt").unlink()
    translator = translator_of(workdir, "7")
    assert written == translator.translate(SOURCES, beam_size=1, alpha=2.0)
    assert written != translator.translate(SOURCES)


def test_evaluate_refuses_unequal_files(workdir, tmp_path):
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("eins\n")
    result = run(
        "evaluate",
        *(f"--workdir={workdir}", f"--source={tmp_path / 'a'}", f"--reference={tmp_path / 'b'}"),
    )
    assert "has 2 lines and" in the_error(result)


def test_perplexity_is_that_of_each_reference_and_no_other(config, workdir):
    translator = translator_of(workdir)

    likelihood = make_likelihood(config, translator.vocabulary, one_device())

    def measure(sources, references):
        return likelihood(translator.params, sources, references).perplexity

    whole = measure(SOURCES, REFERENCES)
    assert measure(SOURCES[::-1], REFERENCES[::-1]) == pytest.approx(whole, rel=1e-5)
    assert measure(SOURCES, REFERENCES[::-1]) != pytest.approx(whole, rel=1e-3)
    assert math.isnan(measure([""], [""]))
    nats, tokens = 0.0, 0
    for source, reference in zip(SOURCES, REFERENCES, strict=True):
        if source:
            count = len(translator.vocabulary.encode([reference])[0])
            nats += count * math.log(measure([source], [reference]))
            tokens += count
    assert math.exp(nats / tokens) == pytest.approx(whole, rel=1e-4)


def test_average_writes_what_is_read_from_then_on(workdir, tmp_path, monkeypatch):
    folder = shutil.copytree(workdir, tmp_path / "run")  # the run folder is other tests', too
    monkeypatch.setenv("HOME", str(tmp_path))  # of --workdir=~/run, in which a shell leaves the ~
    result = run("average", "--workdir=~/run", "--last=2")
    assert result.returncode == 0, result.stderr.decode()
    assert Path(result.stdout.decode().strip()).is_dir()
    old, new, mean = (translator_of(folder, which).params for which in ("3", "7", None))
    jax.tree.map(
        lambda a, b, m: np.testing.assert_allclose(m, (a + b) / 2, rtol=1e-6), old, new, mean
    )


def test_translate_says_all_that_it_is_asked_for(workdir, tmp_path):
    """Moses' columns and JSON lines, of an ensemble, with prefixes; and the same from Python."""
    source, prefix = tmp_path / "in", tmp_path / "prefix"
    source.write_text("one two\n\nfour five six\n")
    prefix.write_text("eins\nzwei\n\n")
    flags = (
        *(f"--workdir={workdir}", f"--input={source}", f"--prefix_file={prefix}"),
        *("--checkpoint=3,7", "--n_best=2", "--scores", "--alignments", "--max_length=5"),
    )
    text, jsonl = run("translate", *flags), run("translate", *flags, "--format=jsonl")
    assert text.returncode == jsonl.returncode == 0, text.stderr.decode()
    entries = [json.loads(line) for line in jsonl.stdout.decode().splitlines()]
    rows = [line.split(" ||| ") for line in text.stdout.decode().split("\n")[:-1]]
    assert [(entry["line"], entry["rank"]) for entry in entries] == [
        *((0, 0), (0, 1), (1, 0), (2, 0), (2, 1))
    ]
    for row, entry in zip(rows, entries, strict=True):
        number, translation, score, log_prob, each, alignment = row
        assert (int(number), translation) == (entry["line"], entry["text"])
        assert float(score) == pytest.approx(entry["score"], abs=1e-4)
        assert float(log_prob) == pytest.approx(entry["log_prob"], abs=1e-4)
        np.testing.assert_allclose(
            [float(value) for value in each.split()], entry["token_log_probs"], atol=1e-4
        )
        assert alignment.split() == [f"{s}-{t}" for s, t in entry["alignment"]]
    assert entries[0]["text"].startswith("eins") and entries[2]["text"] == ""
    found = translator_of(workdir, "3,7").search(
        ["one two", "", "four five six"],
        SearchOptions(n_best=2, scores=True, alignments=True, max_length=5),
        prefixes=["eins", "zwei", ""],
    )
    assert [entry["text"] for entry in entries] == [h.text for line in found for h in line]
    assert "3 lines: 1 empty, 0 cut to 32 tokens, 0 with" in text.stderr.decode()


@pytest.mark.slow  # tests/inference/test_sampling.py has the law
def test_samples_are_the_same_for_the_same_seed_and_line(workdir):
    flags = (
        f"--workdir={workdir}",
        "--sample",
        "--temperature=9",
        "--top_p=0.99",
        "--max_length=6",
    )
    text = b"one two\nthree\nfour five\n"
    first = run("translate", *flags, "--seed=3", stdin=text).stdout
    again = run("translate", *flags, "--seed=3", stdin=b"\n\n" + text.split(b"\n")[2]).stdout
    assert again == b"\n\n" + first.split(b"\n")[2] + b"\n"
    assert run("translate", *flags, "--seed=4", stdin=text).stdout != first


WEIRD = [
    "",
    "one " * 10_000,
    "😀 👨‍👩‍👧‍👦 🏳️‍🌈",
    "שלום עולם مرحبا",
    "a\x00b\x07\x1b[31m\x7f\x0b\x85\u2028\u202e",
    "漢字かな交じり文",
    " \u3000\t ",
    "\ufeff",
    "one",
]


def test_every_weird_line_has_exactly_one_line_and_all_are_counted(workdir):
    result = run("translate", f"--workdir={workdir}", stdin="\n".join(WEIRD).encode())
    assert result.returncode == 0, result.stderr.decode()
    lines = result.stdout.decode().split("\n")
    assert len(lines) == len(WEIRD) + 1 and lines[-1] == ""
    assert lines[0] == lines[6] == ""
    assert len(result.stdout.decode().splitlines()) == len(WEIRD)
    [summary] = said(result.stderr.decode())
    assert summary.startswith("9 lines: 3 empty, 1 cut to 32 tokens, 4 with characters that"), (
        summary
    )


def test_a_pipe_that_waits_for_an_answer_gets_it(workdir):
    """Line by line through a pipe, before stdin ends, at once and after a pause."""
    for flags in (["--interactive"], []):
        process = subprocess.Popen(
            [sys.executable, "-m", "transformer_jax.translate", f"--workdir={workdir}", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
        )
        assert process.stdin is not None and process.stdout is not None
        for line in (b"one two\n", b"\n", b"three\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert (process.stdout.readline() == b"\n") == (line == b"\n")
        rest, errors = process.communicate(timeout=300)
        assert rest == b"" and process.returncode == 0
        weights, summary = errors.decode().splitlines()
        assert weights == f"weights: {workdir} 7"
        assert summary.startswith("3 lines: 1 empty")


@pytest.mark.slow  # tests/inference/test_resumable.py has the law
def test_a_killed_translation_goes_on_and_ends_like_an_undisturbed_one(workdir, tmp_path):
    """kill -9 after the first of three chunks is on disk."""
    source = tmp_path / "in"
    words = np.random.default_rng(0).choice(WORDS, size=(20_000, 3))
    source.write_text("".join(f"{' '.join(row)}\n" for row in words))
    command = [sys.executable, "-m", "transformer_jax.translate", f"--workdir={workdir}"]
    command += [f"--input={source}", "--beam_size=1", "--max_length=3"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    output = tmp_path / "out"
    process = subprocess.Popen([*command, f"--output={output}"], cwd=ROOT, env=environment)
    while not (tmp_path / "out.partial.json").exists():
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not output.exists() and (tmp_path / "out.partial").exists()
    result = run("translate", *command[3:], f"--output={output}")
    assert result.returncode == 0, result.stderr.decode()
    assert "of them by an earlier process" in result.stderr.decode()
    assert run("translate", *command[3:], f"--output={tmp_path / 'other'}").returncode == 0
    assert output.read_bytes() == (tmp_path / "other").read_bytes()
    assert output.read_text().count("\n") == 20_000
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "other"}


def test_score_agrees_with_the_perplexity_of_evaluate(config, workdir, tmp_path):
    for name, lines in (("source", SOURCES), ("target", REFERENCES)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    flags = (
        *(f"--workdir={workdir}", f"--source={tmp_path / 'source'}"),
        *(f"--target={tmp_path / 'target'}", "--alignments"),
    )
    text, jsonl = run("score", *flags), run("score", *flags, "--format=jsonl")
    assert text.returncode == jsonl.returncode == 0, text.stderr.decode()
    rows = text.stdout.decode().split("\n")[:-1]
    entries = [json.loads(line) for line in jsonl.stdout.decode().splitlines()]
    assert len(rows) == len(entries) == 4
    assert rows[1] == "nan" and entries[1]["log_prob"] is None
    total, tokens = 0.0, 0
    for row, entry in zip(rows, entries, strict=True):
        if entry["log_prob"] is not None:
            log_prob, each, alignment = row.split(" ||| ")
            values = [float(value) for value in each.split()]
            assert len(values) == len(entry["tokens"]) + 1
            assert sum(values) == pytest.approx(float(log_prob), abs=1e-3)
            assert len(alignment.split()) == len(entry["alignment"]) >= 1
            total, tokens = total + entry["log_prob"], tokens + len(values)
    translator = translator_of(workdir)
    likelihood = make_likelihood(config, translator.vocabulary, one_device())
    expected = likelihood(translator.params, SOURCES, REFERENCES).perplexity
    assert math.exp(-total / tokens) == pytest.approx(expected, rel=1e-4)
    told = text.stderr.decode().splitlines()[-1]
    found = re.fullmatch(r"(\d+) tokens, log-probability (\S+), perplexity (\S+)", told)
    assert found is not None and int(found[1]) == tokens
    assert float(found[2]) == pytest.approx(total, abs=1e-3)
    assert float(found[3]) == pytest.approx(expected, rel=1e-4)
    assert evaluate(
        workdir, load_text(workdir, "test", str(tmp_path / "source"), str(tmp_path / "target"))
    )["perplexity"] == pytest.approx(expected, rel=1e-4)


def test_an_ensemble_of_run_folders_needs_one_vocabulary(workdir, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(workdir, other)
    pair = [str(workdir), str(other)]
    both = translator_of(pair, "7")
    assert both.checkpoints == ("7", "7")
    assert both.translate(SOURCES) == translator_of(workdir, "7").translate(SOURCES)
    assert translator_of(pair, "3,7").checkpoints == ("3", "7", "3", "7")
    scores = evaluate(pair, load_text(workdir, "validation", *_files(tmp_path)), checkpoint="7")
    assert scores["step"] == "7+7" and scores["perplexity"] > 0
    with pytest.raises(UserError, match="different vocabularies"):
        train_vocabulary(WORDS * 20, size=50, kind="bpe", path=other / "vocabulary.model")
        _common_vocabulary(pair)


def _files(folder):
    (folder / "s").write_text("one two\n")
    (folder / "t").write_text("eins zwei\n")
    return str(folder / "s"), str(folder / "t")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(workdir, tmp_path):
    """experiments/million_lines.py does the same with a million, and measures."""
    from experiments import million_lines  # here: it defines flags, which are the whole process's

    source = tmp_path / "in"
    with source.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in million_lines.text(SOURCES[2:], 200_000))
    options = ["--beam_size=1", "--max_length=4"]
    memory = million_lines.translate(workdir, source, tmp_path / "out", options)
    quarter = next(megabytes for lines, megabytes in memory if lines >= 50_000)
    assert memory[-1][0] > 150_000
    assert memory[-1][1] < quarter + 30
    assert sum(1 for _ in (tmp_path / "out").open("rb")) == 200_000
