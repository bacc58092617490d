"""The command line's front door and its error boundary: an expected failure is one message and exit code 2."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer
import typer.exceptions

from warmline import __version__, console
from warmline.errors import WarmlineError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Build a listening chatbot from an open language model, measure it, and run it privately.

    \b
    Start here:
      warmline demo                                   the whole job on this machine, offline
      warmline train --data FILE --base FOLDER        your data, your base
      warmline chat RUN                               talk to the result in the terminal
    """,
)


def _version(asked: bool) -> None:
    if asked:
        console.out(f"warmline {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if debug:
        os.environ["WARMLINE_DEBUG"] = "1"


def _register() -> None:
    from warmline.cli import build, compare, data, doctor, evaluate, export, keys, plan, prefer, safety, talk, vault

    for piece in (build, plan, prefer, data, evaluate, compare, export, talk, keys, safety, vault, doctor):
        piece.register(app)


_register()


def main() -> None:
    """Run the command line; never lets a traceback reach a user unless `--debug` asks for it."""
    # The libraries' own advice and advertisements are not ours to show.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("BITSANDBYTES_NOWELCOME", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except WarmlineError as error:
        if os.environ.get("WARMLINE_DEBUG"):
            raise
        console.error(str(error))
        sys.exit(2)
    except typer.exceptions.TyperException as error:
        error.show()  # type: ignore[attr-defined]
        sys.exit(2)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        console.say("stopped; run the same command again to continue")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("WARMLINE_DEBUG"):
            raise
        # The text of an unexpected error may quote data, so only its kind is shown.
        console.error(
            f"a fault in Warmline itself: {type(error).__name__}. Finished work is kept.\n"
            "hint: `warmline --debug ...` shows where; report it with that output, after removing private text"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
