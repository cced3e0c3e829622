# SPDX-License-Identifier: Apache-2.0
"""Streams: chunks in order, the same text however often it was interrupted, lines that belong together."""

import os
import threading

import pytest

from transformer_jax.errors import UserError
from transformer_jax.inference import streaming
from transformer_jax.inference.encoding import Counts
from transformer_jax.inference.lines import Lines
from transformer_jax.inference.streaming import count_all, stream


def upper(first, columns, counts, done):
    """A translation that tells which chunk it was made in."""
    counts.lines += len(columns[0])
    counts.empty += sum(not line for line in columns[0])
    done(len(columns[0]))
    rows = zip(*columns, strict=True)
    return "".join(f"{first}+{i} {' '.join(row).upper()}\n" for i, row in enumerate(rows))


def run(tmp_path, *texts, work=upper, output="out", settings=dict):
    files = []
    for number, text in enumerate(texts):
        path = tmp_path / f"in{number}"
        path.write_text(text)
        files.append(Lines(path))
    return stream(
        files, work, output=tmp_path / output, settings=settings, chunk_lines=4, total=None
    )


TEXT = "".join(f"line {number}\n" if number % 5 else "\n" for number in range(11))


def test_chunks_come_in_order_and_are_counted(tmp_path):
    report = run(tmp_path, TEXT)
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[:5] == ["0+0 ", "0+1 LINE 1", "0+2 LINE 2", "0+3 LINE 3", "4+0 LINE 4"]
    assert len(lines) == 11
    assert (report.counts.lines, report.counts.empty, report.before) == (11, 3, 0)
    assert report.summary(24).startswith("11 lines: 3 empty, 0 cut to 24 tokens, 0 with")


@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_an_interrupted_text_ends_like_an_undisturbed_one(tmp_path, chunks):
    run(tmp_path, TEXT, output="undisturbed")

    def killed(first, columns, counts, done):
        if first >= 4 * chunks:
            raise KeyboardInterrupt
        return upper(first, columns, counts, done)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, TEXT, work=killed)
    assert not (tmp_path / "out").exists()
    report = run(tmp_path, TEXT)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "undisturbed").read_bytes()
    assert (report.counts.lines, report.counts.empty) == (11, 3)
    assert report.before == 4 * chunks
    assert {path.name for path in tmp_path.iterdir()} == {"in0", "out", "undisturbed"}


def interrupted(tmp_path, *texts):
    def killed(first, columns, counts, done):
        if first:
            raise KeyboardInterrupt
        return upper(first, columns, counts, done)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *texts, work=killed)


def test_another_text_or_other_settings_are_not_gone_on_with(tmp_path):
    interrupted(tmp_path, TEXT)
    for other in (TEXT.replace("line 2", "line two"), "one line\n", ""):
        with pytest.raises(UserError, match=r"the first 4 lines of .*in0 are not those"):
            run(tmp_path, other)
    with pytest.raises(UserError, match="was begun with beam_size=None, not 4"):
        run(tmp_path, TEXT, settings=lambda: {"beam_size": 4})
    run(tmp_path, TEXT + "one more\n")  # what comes later may change
    assert (tmp_path / "out").read_text().endswith("8+3 ONE MORE\n")


def test_pairs_of_files_are_read_together_and_belong_to_the_input(tmp_path):
    pairs = TEXT.replace("line", "paar")
    interrupted(tmp_path, TEXT, pairs)
    with pytest.raises(UserError, match=r"the first 4 lines of .*in0 and .*in1 are not those"):
        run(tmp_path, TEXT, TEXT)
    run(tmp_path, TEXT, pairs)
    assert "4+0 LINE 4 PAAR 4\n" in (tmp_path / "out").read_text()


@pytest.mark.parametrize(("one", "other"), [(11, 9), (9, 11), (8, 9), (8, 7), (0, 1)])
def test_files_of_different_lengths_are_refused(tmp_path, one, other):
    texts = ["x\n" * number for number in (one, other)]
    shorter = f"in{int(other < one)}"
    with pytest.raises(UserError, match=f"{shorter} ends after line {min(one, other)} and"):
        run(tmp_path, *texts)
    with pytest.raises(UserError, match=f"in0 has {one} and .*in1 has {other} lines"):
        count_all([str(tmp_path / "in0"), str(tmp_path / "in1")])
    assert count_all([str(tmp_path / "in0"), None]) is None
    assert count_all([str(tmp_path / "in1")]) == other


def test_stdout_gets_every_chunk_as_soon_as_it_is_made(tmp_path, capfdbinary):
    (tmp_path / "in").write_text(TEXT)
    seen = []

    def work(first, columns, counts, done):
        seen.append(capfdbinary.readouterr().out.count(b"\n"))
        return upper(first, columns, counts, done)

    stream([Lines(tmp_path / "in")], work, chunk_lines=4)
    assert seen == [0, 4, 4]


def test_long_lines_make_short_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 10)
    sizes = []

    def work(first, columns, counts, done):
        sizes.append(len(columns[0]))
        return ""

    run(tmp_path, "a" * 50 + "\n" + "bcdef\n" * 4, work=work)
    assert sizes == [1, 2, 2]


def test_a_pipe_gets_every_chunk_and_no_file_is_left(tmp_path):
    os.mkfifo(tmp_path / "out")
    got = []
    reader = threading.Thread(target=lambda: got.extend((tmp_path / "out").open()))
    reader.start()
    run(tmp_path, TEXT)
    reader.join()
    assert len(got) == 11 and got[-1] == "8+2 \n"
    assert {path.name for path in tmp_path.iterdir()} == {"in0", "out"}


def test_a_link_s_partial_file_stands_beside_what_it_leads_to(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to("there/real")
    interrupted(tmp_path, TEXT)
    assert (tmp_path / "there" / "real.partial").exists()
    assert run(tmp_path, TEXT).before == 4
    assert (tmp_path / "there" / "real").read_text().count("\n") == 11
    assert (tmp_path / "out").is_symlink()
    assert {path.name for path in tmp_path.glob("**/*")} == {"in0", "out", "there", "real"}


def test_the_summary_tells_of_lines_that_came_out_empty():
    report = streaming.Report(Counts(lines=9, empty=2, lost=3, unknown=4), 0, 1.0)
    assert report.summary(24).startswith(
        "9 lines: 2 empty, 3 with text that came out empty, 0 cut to 24 tokens, 4 with characters"
    )
