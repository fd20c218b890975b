"""The command line: one command for each entry point of MLproject.

Neither TensorFlow nor MLflow is imported before the arguments are known to be valid.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

from pneumo.commands.options.arguments import Options
from pneumo.commands.options.parser import parse
from pneumo.runtime import signals
from pneumo.runtime.errors import (
    ERROR_PREFIX,
    EXIT_USER_ERROR,
    StudyFailedError,
    UserError,
    describe_failure,
)

# Command → kind of its run, if the two differ
KINDS = {"tune": "study"}

INTERRUPTED = "interrupted; finished work is kept"


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments, by default those of the process.

    Returns:
        Exit code: 0 for success, 2 for a user error, 3 for a rejected promotion, 1 for any other
        failure.
    """
    signals.install_handlers()
    arguments = sys.argv[1:] if argv is None else argv
    try:
        return _run(*parse(arguments))
    except StudyFailedError as reason:
        _print_error(reason)
        return 1
    except UserError as error:
        _print_error(error)
        _end_unused_run(arguments, str(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        _print_error(INTERRUPTED)
        _end_unused_run(arguments, INTERRUPTED)
        return 1
    except Exception as error:
        _end_unused_run(arguments, describe_failure(error))
        raise


def _run(name: str, options: Options) -> int:
    """Run a command: the function of its name, in the module of its name."""
    if name == "test":
        return subprocess.call([sys.executable, "-m", "pytest"], cwd=Path(__file__).parent.parent)
    from pneumo.commands.options.inputs import load_inputs

    inputs = load_inputs(options)  # finds a user error before the command imports MLflow
    command = getattr(importlib.import_module(f"pneumo.commands.{name}"), name)
    return command(options, inputs)


def _print_error(reason: object) -> None:
    print(f"{ERROR_PREFIX}{reason}", file=sys.stderr)


def _end_unused_run(arguments: list[str], reason: str) -> None:
    """Store why the command failed in the run that `mlflow run` has created, if it is unused."""
    if "MLFLOW_RUN_ID" in os.environ:  # MLflow removes it when the run is used
        from pneumo.tracking import runs

        command = next(iter(arguments), "")
        runs.end_unused_run(KINDS.get(command, command), reason)


if __name__ == "__main__":
    signals.exit_process(main())
