# SPDX-License-Identifier: Apache-2.0
"""Errors that a user caused and can mend, and how the commands report them."""

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags

# A full disk, a quota, missing rights: the user's to mend, wherever it happens.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class UserError(Exception):
    """One line that names the culprit and the remedy. Commands print it and exit with code 2."""


def check_lines(name: str, lines: Iterable[str]) -> list[str]:
    """The lines as a list; `name` is what the caller calls them.

    A str is a sequence of str, too, of its letters. Nobody means that.

    Raises:
      UserError: it is a str, or something in it is none.
    """
    if isinstance(lines, str | bytes):
        raise UserError(
            f"{name} is one {type(lines).__name__}; give a list with a str a line, such as "
            "['A friend.', 'A book.']"
        )
    lines = list(lines)
    for number, line in enumerate(lines):
        check_line(f"{name}[{number}]", line)
    return lines


def check_line(name: str, line: str) -> None:
    """Raises: UserError, unless it is a str."""
    if not isinstance(line, str):
        raise UserError(f"{name} is {line!r:.50} of type {type(line).__name__}; it must be a str")


def first_line(error: BaseException) -> str:
    """What an error says, without the explanations that follow in some; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:200]


def mendable(error: BaseException) -> UserError | None:
    """The line for what a full disk, missing rights, or a device's full memory raised anywhere."""
    if isinstance(error, OSError) and error.errno in _DISK:
        return UserError(
            f"{error.filename or 'a file'} cannot be read or written: {error.strerror}"
        )
    # By its name: importing JAX here would slow --help.
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):
        return UserError(
            "the memory of a device is full; training needs less with config.train.accumulate, "
            "config.train.remat=True or config.train.logits_chunk=2048, and --dry_run says what a step needs "
            f"({first_line(error)})"
        )
    return None


def tell(message: str) -> None:
    """Print a line for people to stderr. Work goes on where nobody can read it."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:  # a pipe without a reader, a full disk
        _lead_nowhere(2)


def _lead_nowhere(number: int) -> None:
    """What is written to this descriptor from now on is lost, and no error."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == number:  # it was closed
        os.set_inheritable(number, True)
    else:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _set_up_streams() -> None:
    """Make stdin, stdout and stderr usable, whatever a command was started with.

    One that is closed leads nowhere: else the next file that is opened would get its number, and what
    others print would go into it. sys.__stdin__ and sys.__stdout__ stay None and tell.
    Text for people is printed with escapes where the stream's encoding lacks a character.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            _lead_nowhere(number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def check_stdout() -> None:
    """Raises: UserError if stdout is closed, for a command whose result would go there."""
    if sys.__stdout__ is None:
        raise UserError("stdout is closed; name a file with --output")


def run_command(main: Callable[[Sequence[str]], None]) -> None:
    """Run `main` under absl.

    A UserError or a wrong flag ends in its line on stderr and exit code 2, without a traceback.
    """

    _set_up_streams()

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(
                    f"unexpected argument {argv[1]!r}; flags are --name=value, see --help"
                )
            main(argv)
            sys.stdout.flush()
        except UserError as error:
            _fail(error)
        except KeyboardInterrupt:
            tell("interrupted")
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            # Whoever read our output has seen enough, as in `... | head`. Python flushes stdout once
            # more at the end; that must not fail again.
            _lead_nowhere(1)
        except Exception as error:
            line = mendable(error)
            if line is None:
                raise
            _fail(line)

    app.run(guarded, flags_parser=_parse_flags)


def _refuse_another_value(flag: flags.Flag) -> None:
    """Make a second value of a flag on one command line an error; absl would take the last in silence."""
    given: list[Any] = []

    def parse(argument: Any) -> None:
        given.append(argument)
        if argument != given[0]:
            raise UserError(
                f"--{flag.name} is given twice, as {given[0]} and as {argument}; give it once"
            )
        type(flag).parse(flag, argument)

    flag.parse = parse  # type: ignore[method-assign]


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        for name in flags.FLAGS:
            if not isinstance(flags.FLAGS[name], flags.MultiFlag):
                _refuse_another_value(flags.FLAGS[name])
        return flags.FLAGS(argv)
    except SystemExit:  # --help was printed; absl would call that a failure
        sys.exit(0)
    except (flags.Error, UserError) as error:
        _fail(error)
    except (AttributeError, KeyError) as error:  # how ml_collections says: there is no such field
        _fail(UserError(f"--config: {error}; transformer_jax/config.py has all fields"))
    except Exception as error:  # whatever a config file does
        # ml_collections puts a whole traceback into some messages; its last line is the message.
        reason = str(error).strip().split("\n")[-1]
        _fail(UserError(f"--config cannot be loaded: {type(error).__name__}: {reason}"))


def _fail(error: Exception) -> NoReturn:
    message = " ".join(str(error).split())
    tell(f"error: {message}")
    # Python tells of what it finds half-done at the end; the error stays the last line.
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.exit(2)
