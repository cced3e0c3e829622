# SPDX-License-Identifier: Apache-2.0
"""Sentence pairs of a TFDS translation data set, such as the paper's WMT 2014: section 5.1.

Data sets are prepared as array_record and read as a data source, without TensorFlow. They lie where
TFDS puts them, ~/tensorflow_datasets or the environment's TFDS_DATA_DIR.
"""

import importlib.resources.abc
import importlib.util
import os
import types
from collections.abc import Iterator
from typing import Any

from transformer_jax.errors import UserError

_READ_AT_ONCE = 1024  # records
_OPEN_FILES = 4096


class TfdsSplit:
    """The (source, target) pairs of one split; downloads and prepares the data set if need be."""

    def __init__(self, name: str, split: str, languages: tuple[str, str]):
        """`name`: such as wmt14_translate/de-en; `languages`: of the source and of the target.

        Raises:
          UserError: TFDS has no such data set, split or language, or cannot download it.
        """
        builder = _builder(name)
        known = list(builder.info.features or ())
        if not set(languages) <= set(known):
            raise UserError(
                f"config.data.source={name!r} has {', '.join(known)}, but config.data.source_lang "
                f"is {languages[0]} and config.data.target_lang {languages[1]}"
            )
        _prepare(builder, name)
        if split not in builder.info.splits:
            raise UserError(
                f"config.data.splits names {split!r}; {name} has {', '.join(builder.info.splits)}"
            )
        self.name = f"{builder.info.full_name} {split} {languages[0]} {languages[1]}"
        self._records = builder.as_data_source(split)
        self._languages = languages

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        source, target = self._languages
        for start in range(0, len(self), _READ_AT_ONCE):
            indices = range(start, min(start + _READ_AT_ONCE, len(self)))
            for record in self._records.__getitems__(list(indices)):
                yield record[source].decode(), record[target].decode()


def _builder(name: str) -> Any:
    import tensorflow_datasets as tfds
    import tensorflow_datasets.translate  # registers the builders

    try:
        return tfds.builder(name, file_format="array_record")
    except (ValueError, AssertionError, ImportError) as error:  # what TFDS raises for a wrong name
        # The first sentence of TFDS's message; the rest is a list of all data sets.
        reason = str(error).strip().partition("\n")[0].rpartition('}": ')[2].rstrip(" .:")
        raise UserError(
            f"config.data.source={name!r} is not phrasebook, not text, and no TFDS name such as "
            f"wmt14_translate/de-en: {reason}"
        ) from None


def _prepare(builder: Any, name: str) -> None:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.extractor import ExtractError

    failures = (
        OSError,  # of the network too
        tfds.download.DownloadError,
        NonMatchingChecksumError,
        ExtractError,
        AssertionError,  # "... you must manually download the following file(s) ..."
    )
    _do_without_tensorflow()
    _allow_open_files()
    try:
        builder.download_and_prepare()
    except failures as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"config.data.source={name!r} cannot be downloaded and prepared in "
            f"{builder.data_dir}: {type(error).__name__}: {reason}"
        ) from error


def _do_without_tensorflow() -> None:
    """Give TFDS Python's own functions where it uses TensorFlow's, if that is not installed.

    Unpacking an archive and sorting more than a gigabyte of records open, test and remove files by
    TensorFlow's file functions. TFDS 4.9.10 also imports importlib_resources, which it does not
    require; it is the same as Python's importlib.resources.
    """
    from tensorflow_datasets.core import dataset_builder, shuffle
    from tensorflow_datasets.core.download import extractor

    if importlib.util.find_spec("importlib_resources") is None:
        dataset_builder.importlib_resources = importlib.resources
    if importlib.util.find_spec("tensorflow") is None:
        files = types.SimpleNamespace(GFile=open, exists=os.path.exists, remove=os.remove)
        extractor.tf = shuffle.tf = types.SimpleNamespace(
            io=types.SimpleNamespace(gfile=files),
            errors=types.SimpleNamespace(ResourceExhaustedError=MemoryError),
            compat=types.SimpleNamespace(as_text=str),
        )


def _allow_open_files() -> None:
    """TFDS sorts large data sets through 1,000 files open at once; many systems allow 1,024."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
