# SPDX-License-Identifier: Apache-2.0
"""Arrays in a file, by name: Hugging Face's safetensors, of which numpy is all that is needed.

8 bytes    the header's length, little-endian
header     JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
the rest   the arrays' bytes, row-major, little-endian; offsets count from here
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from transformer_jax.errors import UserError

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit
_ALIGNMENT = 8  # of the first array's bytes


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file; their bytes are read when they are used.

    Raises:
      UserError: it cannot be read, or is no such file.
    """
    path = Path(path)
    try:
        content = np.memmap(path, np.uint8, mode="r")
        return _parse(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no safetensors file, or damaged: {error!r}") from None


def write(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays, and texts that describe them."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name, array in arrays.items():
        end = begin + array.nbytes
        header[name] = {
            "dtype": names[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())
    temporary.replace(path)  # the arrays may be those of the file that was there, which `read` maps


def _parse(content: np.ndarray) -> dict[str, np.ndarray]:
    length = int.from_bytes(content[:8].tobytes(), "little")
    if not 0 < length <= min(_LONGEST_HEADER, len(content) - 8):
        raise ValueError(f"its header's length is {length}")
    header = json.loads(content[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    data = content[8 + length :]
    arrays = {}
    for name, entry in header.items():
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(data) or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the offsets of {name} do not fit")
        arrays[name] = data[begin:end].view(dtype).reshape(shape)
    return arrays
