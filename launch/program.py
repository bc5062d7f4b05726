"""How every program starts: quiet libraries, and errors that say what to do instead of a trace."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

from linseqrec.config import ConfigError
from linseqrec.data.dataset import DatasetError
from linseqrec.data.worlds import WorldError
from linseqrec.training.checkpoint import CheckpointError
from linseqrec.training.loop import NonFiniteError
from linseqrec.training.workdir import WorkdirError

_FOR_THE_USER = (
    CheckpointError,
    ConfigError,
    DatasetError,
    NonFiniteError,
    WorkdirError,
    WorldError,
)


def run_program(main: Callable[[list[str]], None]) -> None:
    """Parses flags and runs `main`; an error that the user can mend ends in one line and code 1."""
    app.run(lambda argv: _run(main, argv), flags_parser=_parse_flags)


def _run(main: Callable[[list[str]], None], argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)
    try:
        main(argv)
    except _FOR_THE_USER as error:
        sys.exit(f"error: {error}")


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    # An unknown field of --config surfaces as an AttributeError that names the nearest known one.
    except (flags.Error, AttributeError, *_FOR_THE_USER) as error:
        text = " ".join(str(error.args[0] if error.args else error).split())
        sys.exit(f"error: {text}")
