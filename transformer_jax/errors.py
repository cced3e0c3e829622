# SPDX-License-Identifier: Apache-2.0
"""Errors that a user caused and can mend, and how the commands report them."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging


class UserError(ValueError):
    """One line that names the culprit and the remedy. Commands print it and exit with code 2."""


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run `main` under absl.

    A UserError or a wrong flag ends in its line on stderr and exit code 2, without a traceback.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(
                    f"unexpected argument {argv[1]!r}; flags are --name=value, see --help"
                )
            if flags.FLAGS["verbosity"].using_default_value:
                logging.set_verbosity(logging.WARNING)  # Orbax has much to say
            main(argv)
            sys.stdout.flush()
        except UserError as error:
            _fail(error)
        except BrokenPipeError:
            # Whoever read our output has seen enough, as in `... | head`. Python flushes stdout once
            # more at the end; that must not fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, UserError) as error:
        _fail(error)
    except (AttributeError, KeyError, TypeError, OSError) as error:
        # How ml_collections says that a config has no such field, or its file does not exist.
        _fail(UserError(f"--config: {error}; transformer_jax/config.py has all fields"))
    except SystemExit:  # --help was printed; absl would call that a failure
        sys.exit(0)


def _fail(error: Exception) -> NoReturn:
    message = " ".join(str(error).split())
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
