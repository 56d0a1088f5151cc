"""The command line: `kubectl vfio ...`, since kubectl runs a program of the name kubectl-vfio for it."""

import os
import sys
import traceback
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer import completion as completions

from vfio_cli.bundles import bundled
from vfio_cli.problems import FAILED, INTERRUPTED, USAGE, UserError
from vfio_cli.run_doctor import doctor
from vfio_cli.run_evacuate import evacuate
from vfio_cli.run_lists import devices, history, nodes, version
from vfio_cli.run_migrate import cancel, migrate, plan, rehearse
from vfio_cli.run_watch import explain, timeline, watch

PROGRAM, PLUGIN = "kubectl vfio", "kubectl-vfio"
COMPLETE, DEBUG = "_KUBECTL_VFIO_COMPLETE", "VFIO_DEBUG"
_completions: Any = completions  # it does not say what it exports
app = typer.Typer(
    name=PLUGIN,
    help="Migrate VFIO devices, and pods with them, between nodes, and see how it goes.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    *(migrate, plan, rehearse, evacuate, watch, timeline, explain),
    *(devices, nodes, cancel, history, doctor, version),
)
for command in COMMANDS:
    app.command()(bundled(command))


class Shell(StrEnum):
    """A shell that can complete."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="The shell.")]) -> None:
    """Print the script that has a shell complete kubectl-vfio. kubectl's own completion needs none."""
    print(_completions.get_completion_script(prog_name=PLUGIN, complete_var=COMPLETE, shell=shell.value))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code. Whatever goes wrong is told in one line on stderr."""
    try:
        return _run(arguments)
    except OSError as error:  # all others are told by who asked for the file or the API server
        _leave_stdout()
        _say(f"standard output: expected one that takes what is written, found: {error.strerror or error}; see df")
        return FAILED
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        what = " ".join(f"{type(error).__name__}: {error}".split())
        _say(f"internal error ({what}): this is a mistake of the plugin; report it; set {DEBUG}=1 for the traceback")
        return FAILED


def _run(arguments: Sequence[str]) -> int:
    if COMPLETE in os.environ:
        _completions.completion_init()
    try:
        code = app(args=list(arguments) or ["--help"], prog_name=PROGRAM, complete_var=COMPLETE, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except UserError as problem:
        _say(str(problem))
        return problem.code
    except typer.TyperException as error:  # how it was called
        where = getattr(getattr(error, "ctx", None), "command_path", PROGRAM)
        what = " ".join(error.format_message().split()).rstrip(".")
        _say(f"{where}: {what}; {_hint(where, error)}see {where} --help")
        return USAGE
    except (typer.Abort, KeyboardInterrupt):
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # who read it has enough
        _leave_stdout()
        return FAILED


def _hint(where: str, error: Exception) -> str:
    """kubectl takes its own flags before the command, a plugin after it."""
    option = getattr(error, "option_name", "")
    return f"put {option} behind the command; " if option and where == PROGRAM else ""


def _leave_stdout() -> None:
    """Nothing that is left for it is written any more, nor complained of at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """The console script kubectl-vfio."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
