# SPDX-License-Identifier: Apache-2.0
"""Flags that name files and folders; ~ in front is the home folder, which shells leave alone behind `=`."""

from typing import Any

from absl import flags

from transformer_jax.files import with_home

flags.disclaim_key_flags()  # --help shows them with the module that defines them


class _PathParser(flags.ArgumentParser[str]):
    def parse(self, argument: str) -> str:
        return with_home(argument)

    def flag_type(self) -> str:
        return "path"


def define_path(name: str, description: str, *, required: bool = False) -> Any:
    """A flag that names one file or folder, or nothing."""
    return flags.DEFINE(_PathParser(), name, None, description, required=required)


def define_paths(name: str, description: str, *, required: bool = False) -> Any:
    """A flag that may be given several times, for a list of paths."""
    return flags.DEFINE_multi(
        _PathParser(), flags.ArgumentSerializer(), name, None, description, required=required
    )
