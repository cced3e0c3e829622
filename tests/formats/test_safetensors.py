# SPDX-License-Identifier: Apache-2.0
"""Safetensors: what is written is read again, the same bytes as the format's own library, or an error."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from transformer_jax.errors import UserError
from transformer_jax.formats import safetensors

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2.0], np.float16),
    "brain": np.array([1.5, -2.0, 3.0], ml_dtypes.bfloat16),
    "scalar": np.array(7, np.int64),
    "none": np.zeros((0, 4), np.float32),
    "after an odd number of bytes": np.array([1, 2, 3], np.int32),
}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    safetensors.write(tmp_path / "a", ARRAYS, {"format": "pt"})
    again = safetensors.read(tmp_path / "a")
    assert list(again) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)


def test_the_format_s_own_library_reads_it_and_writes_what_we_read(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy")
    arrays = {name: array for name, array in ARRAYS.items() if name != "brain"}
    safetensors.write(tmp_path / "ours", arrays, {"format": "pt"})
    library.save_file(arrays, tmp_path / "theirs")
    for read, name in ((library.load_file, "ours"), (safetensors.read, "theirs")):
        for key, array in read(tmp_path / name).items():
            np.testing.assert_array_equal(array, arrays[key])


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"not JSON",
        b"[]",
        json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}).encode(),
        json.dumps({"a": {"dtype": "F9", "shape": [2], "data_offsets": [0, 8]}}).encode(),
        json.dumps({"a": {"shape": [2]}}).encode(),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match="is no safetensors file, or damaged"):
        safetensors.read(path)
    path.write_bytes((2**60).to_bytes(8, "little"))
    with pytest.raises(UserError, match="is no safetensors file, or damaged"):
        safetensors.read(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is no safetensors file, or damaged"):
        safetensors.read(path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        safetensors.read(tmp_path / "none")
