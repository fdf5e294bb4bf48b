"""The command line: results on stdout, everything else on stderr; exit status 0 done, 1 failed, 2 bad input."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from catalog.schema import InputError, LandslideError
from catalog.secrets import guard_logs
from flows import analyst, demonstration, duty, trainer
from flows.ending import ended_by_signals
from flows.surroundings import reach_loopback_directly
from flows.terminal import ManyFiles, err_console, terminal_handler

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From satellite imagery before and after an earthquake to a landslide inventory for QGIS.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"landslidenet {installed_version('landslidenet')}")
        raise typer.Exit


@app.callback()
def landslidenet(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Nothing: the commands do the work."""


for of_files in (analyst.detect, analyst.adapt):
    app.command(cls=ManyFiles)(of_files)
for command in (
    demonstration.simulate, analyst.evaluate, demonstration.demo, trainer.models, trainer.train,
    trainer.average, duty.respond, duty.watch, duty.up,
):  # fmt: skip
    app.command()(command)


def main() -> None:
    """Entry point: a bad input is one clear message and status 2, a failure of ours 1, a signal 128 and more."""
    guard_logs()
    logging.basicConfig(level=logging.WARNING, handlers=[terminal_handler()])
    reach_loopback_directly()
    try:
        with ended_by_signals():
            app(prog_name="landslidenet")
    except InputError as error:
        err_console.print("error:", str(error), markup=False, soft_wrap=True)
        sys.exit(2)
    except LandslideError as error:
        err_console.print("failed:", str(error), markup=False, soft_wrap=True)
        sys.exit(1)
