# SPDX-License-Identifier: Apache-2.0
"""Bars are for whoever looks on; a log has a line now and then."""

import io
import logging
import sys
import types
import warnings

import pytest

from transformer_jax import progress
from transformer_jax.progress import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def stderr(monkeypatch):
    """A function that makes stderr this."""

    def use(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return use


def work(**options):
    with Bar(400, "pairs", "tokenising train", **options) as bar:
        bar.update(100)
        bar.note("loss 2.5")
    return bar


def test_a_terminal_has_a_bar(stderr):
    seen = stderr(Terminal())
    assert work(done=100).live
    assert "tokenising train:  50%" in seen.getvalue() and " 200/400 " in seen.getvalue()
    hidden = stderr(Terminal())
    assert not work(shown=False).live
    assert not hidden.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), None], ids=["a file", "closed"])
def test_a_log_has_a_line_a_minute_and_no_bar(stderr, monkeypatch, caplog, stream):
    stderr(stream)
    now = 1000.0
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now))
    with caplog.at_level(logging.INFO), Bar(400, "pairs", "tokenising", done=100) as bar:
        for now in (1030.0, 1060.0, 1090.0, 1119.0, 1121.0):  # noqa: B007  (read above)
            bar.update(20)
        bar.note("loss 2.5")
    # After 60 s 40 of the remaining 300 are done: 60 / 40 * 260 s are left.
    assert caplog.messages == [
        "tokenising: 140 of 400 pairs  6:30 left",
        "tokenising: 200 of 400 pairs  4:02 left",
    ]
    assert stream is None or not stream.getvalue()


@pytest.mark.parametrize("options", [{"shown": False}, {"lines": False}])
def test_a_log_has_no_lines_where_they_are_not_wanted(stderr, monkeypatch, caplog, options):
    stderr(io.StringIO())
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        work(**options)
    assert not caplog.messages


def test_a_notebook_has_a_bar_and_no_warning_without_widgets(stderr, monkeypatch):
    """A kernel's stderr is no terminal; IPython's own signs tell."""
    seen = stderr(io.StringIO())

    class ZMQInteractiveShell:
        config = {"IPKernelApp": {}}  # noqa: RUF012

    kernel = ZMQInteractiveShell()
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: kernel
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", types.ModuleType("zmqshell"))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # not installed
    for name in ("auto", "autonotebook", "notebook"):  # they look once, when they are imported
        monkeypatch.delitem(sys.modules, f"tqdm.{name}", raising=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert work().live
    assert not told
    assert " 100/400 " in seen.getvalue()
    ipython.get_ipython = lambda: None  # imported, but by no notebook
    assert not work().live
