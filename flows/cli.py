"""The `tunetrail` command. Its --help must answer at once, so each command imports what it uses."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

import typer

DONE, GATE, MISUSE, FAULT = 0, 1, 2, 3
"""Exit codes, as of the stages."""

app = typer.Typer(
    help="Fine-tune a language model so that each version can be rebuilt, bit for bit.",
    epilog="Exit codes: 0 done, 1 a gate said no, 2 bad input, 3 a fault of the environment.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # importing rich takes longer than all else that --help does
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The entry point that the project installs."""
    app()


@app.callback()
def _in_project(context: typer.Context) -> None:
    """Work from the project's root, wherever in it the command was given."""
    context.obj = here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            os.chdir(folder)
            return
    _stop(f"{here} is in no project: there is no dvc.yaml here or above; `cd` into a clone", MISUSE)


@app.command()
def run(
    stage: Annotated[
        str | None, typer.Argument(help="A stage of dvc.yaml; it and what it needs are run.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Run the stage, or all, though nothing has changed.")
    ] = False,
) -> None:
    """Bring the pipeline up to date: what has not changed does not run."""
    _refuse_faults()
    from flows import pipeline, results
    from flows.dvc_dag import DagError, StageFailed

    logging.raiseExceptions = False  # Prefect's log worker tells each failure to deliver otherwise
    try:
        walk = pipeline.run(stage, force)
    except DagError as error:
        _stop(str(error), MISUSE)
    except StageFailed as error:
        _stop(
            f"stage {error.stage} failed: {error.message}\n"
            "No stage after it has run. When that is mended, `tunetrail run` goes on from there; "
            "docs/when-something-fails.md knows more.",
            error.exit_code,
        )
    if not walk.writes(str(results.METRICS)):
        print(f"{stage} is up to date. Next: `tunetrail run`")
        return
    if not _show_results():
        raise typer.Exit(GATE)


@app.command()
def report() -> None:
    """Show the last result again: scores, verdict, where to look."""
    _show_results()


@app.command()
def rejects(
    context: typer.Context,
    stage: Annotated[
        str | None, typer.Option(help="Rows that this stage rejected: ingest, validate, format.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Rows rejected for this reason.")] = None,
    source: Annotated[str | None, typer.Option(help="Rows of this file below data/raw.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Rows to show at most.")] = 20,
    table: Annotated[
        Path | None, typer.Option("--csv", help="Write all of them to this file.")
    ] = None,
) -> None:
    """List the rows that were not used, and why: which rows to mend."""
    from flows import rejects as lists

    wanted = lists.Wanted(stage, reason, source)
    table = context.obj / table if table else None  # as seen from where the command was given
    try:
        with table.open("w", encoding="utf-8", newline="") if table else nullcontext() as file:
            found = lists.find(wanted, limit, file)
    except lists.Unreadable as error:
        _stop(str(error), FAULT)
    except OSError as error:
        _stop(f"{error.filename}: {error.strerror}; choose another file", MISUSE)
    for line in lists.describe(found, wanted):
        print(line)
    if table:
        print(f"\nWrote {found.rows} rows to {table}.")


@app.command()
def check() -> None:
    """Find everything that would stop a run, without running anything."""
    _refuse_faults()
    print("Nothing stands in the way. Next: `tunetrail run`")


@app.command()
def use(
    profile: Annotated[str, typer.Argument(help="A file of profiles/, without its ending.")],
) -> None:
    """Write a profile's values over params.yaml; the rest of it stays."""
    from flows import profiles

    try:
        changes = profiles.use(profile, Path("params.yaml"))
    except profiles.ProfileError as error:
        _stop(str(error), MISUSE)
    for change in changes:
        print(f"  {change}")
    what = f"changed {len(changes)} values of" if changes else "changes nothing in"
    print(f"{profile} {what} params.yaml. Next: `tunetrail check`")


@app.command()
def sync() -> None:
    """Deliver to MLflow what was recorded while it was out of reach."""
    from tasks import register
    from tasks.lineage.stage import StageError
    from tasks.lineage.store import Unreachable

    try:
        version, problems = register.sync()
    except Unreachable as error:
        _stop(f"{error}; all is kept, run `tunetrail sync` when it is back", FAULT)
    except StageError as error:
        _stop(str(error), error.exit_code)
    if problems:
        _stop("\n".join(problems), FAULT)
    print("MLflow has every run.")
    if version is not None:
        print(f"The candidate is version {version.number} of {version.model}.")


def _refuse_faults() -> None:
    from flows import preflight

    faults = preflight.faults()
    if faults:
        count = "1 fault stands" if len(faults) == 1 else f"{len(faults)} faults stand"
        lines = [f"{count} in the way; nothing has run:", *(fault.text for fault in faults)]
        _stop("\n".join(lines), preflight.exit_code(faults))


def _show_results() -> bool:
    """Print the result, and return whether it passed the gates."""
    from rich.console import Console

    from flows import results

    try:
        result = results.read()
    except results.NoResults as error:
        _stop(str(error), MISUSE)
    result.show(Console() if sys.stdout.isatty() else Console(width=results.WIDE))
    return result.passed


def _stop(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(code)
