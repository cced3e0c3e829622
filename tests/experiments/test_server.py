# SPDX-License-Identifier: Apache-2.0
"""The web service of the README, asked through its own client."""

import importlib

import pytest

from tests.formats.peers import sentences, write_folder
from transformer_jax import Translator
from transformer_jax.formats import marian

pytest.importorskip("fastapi")
pytest.importorskip("httpx")


def test_it_translates_and_refuses(tmp_path, monkeypatch):
    from fastapi.testclient import TestClient

    write_folder(tmp_path / "theirs", layers=1)
    marian.import_folder(tmp_path / "theirs", tmp_path / "run")
    monkeypatch.setenv("WORKDIR", str(tmp_path / "run"))
    server = importlib.import_module("experiments.serving.server")
    client, lines = TestClient(server.app), [*sentences(3), ""]
    answer = client.post("/translate", json={"lines": lines, "beam_size": 2})
    assert answer.status_code == 200
    assert answer.json() == Translator.from_workdir(tmp_path / "run").translate(lines, beam_size=2)
    for wrong in ({}, {"lines": "no list"}, {"lines": lines, "beam_size": 0}):
        assert client.post("/translate", json=wrong).status_code == 422
