"""The `tunetrail` command. Its --help must answer at once, so each command imports what it uses."""

from __future__ import annotations

import getpass
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from tasks.lineage.verify import Report

DONE, GATE, MISUSE, FAULT = 0, 1, 2, 3
"""Exit codes, as of the stages."""

UNTOLD = 4
"""All is done, and the Prefect server that is named does not know of it."""

TOLERANCE = 1.0e-3
"""Within which a rebuilt version is called equivalent: a tenth of a percentage point of a score, and
less than a rounding step of bfloat16 for a weight of one half."""

app = typer.Typer(
    help="Fine-tune a language model so that each version can be rebuilt, bit for bit.",
    epilog="Exit codes: 0 done, 1 a gate said no, 2 bad input, 3 a fault of the environment, "
    "4 done, but the Prefect server that is named does not know of it.",
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
    """Bring the pipeline up to date: only what changed runs."""
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
    elif not _show_results():
        raise typer.Exit(GATE)
    if walk.untold:
        _stop(
            f"All is done, and Prefect at {walk.untold} does not know of it: start it, or "
            "`unset PREFECT_API_URL`. Nothing needs to run again.",
            UNTOLD,
        )


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
    """Find everything that would stop a run, and run nothing."""
    _refuse_faults()
    print("Nothing stands in the way. Next: `tunetrail run`")


@app.command()
def use(
    profile: Annotated[str, typer.Argument(help="A file of profiles/, without its ending.")],
) -> None:
    """Write a profile's values over those of params.yaml."""
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
def engines(
    model: Annotated[
        Path | None, typer.Option(help="In Hugging Face format; models/merged otherwise.")
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(help="What was exported from it; models/onnx for models/merged."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Prompts of the test to ask.")] = 48,
    write: Annotated[
        bool, typer.Option("--write", help="Set evaluate.engine in params.yaml to the fastest.")
    ] = False,
) -> None:
    """Measure which engine answers fastest with the same tokens."""
    from flows import engines as measurement
    from flows.profiles import ProfileError

    exported = onnx or (None if model else measurement.ONNX)
    with _told():
        folder = model or measurement.MODEL
        found = measurement.measure(folder, exported, rows, lambda line: print(line, flush=True))
        print(*measurement.table(found), sep="\n")
        best = measurement.best(found)
    equal = measurement.same(best, found[0])
    print(f"{best.name} is the fastest with {equal} of {len(found[0].answers)} answers the same.")
    if not write:
        print("Next: `tunetrail engines --write` sets it in params.yaml")
        return
    try:
        changes = measurement.write(best.name, Path("params.yaml"))
    except ProfileError as error:
        _stop(str(error), MISUSE)
    print(*(f"  {change}" for change in changes), sep="\n")
    print("Next: `tunetrail run`" if changes else "params.yaml says so already.")


@app.command()
def sync() -> None:
    """Deliver to MLflow what was recorded while it was out of reach."""
    from tasks import register

    with _told("all is kept, run `tunetrail sync` when it is back"):
        version, problems = register.sync()
    if problems:
        _stop("\n".join(problems), FAULT)
    print("MLflow has every run.")
    if version is not None:
        print(f"The candidate is version {version.number} of {version.model}.")


@app.command()
def verify(
    version: Annotated[
        str, typer.Argument(help="NAME@VERSION or NAME@ALIAS, as in shipments-candidates@1.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON, for a program to read.")
    ] = False,
) -> None:
    """Check signature, files and evidence of a version; run nothing."""
    import dataclasses
    import json

    from tasks.lineage import evidence
    from tasks.lineage import verify as verification

    with _told():
        report = verification.verify(*evidence.parse(version))
    if as_json:
        print(json.dumps({"holds": report.holds, **dataclasses.asdict(report)}, indent=2))
    else:
        for finding in report.findings:
            outcome = "holds" if finding.holds else "FAILS"
            print(f"{finding.check:<10}  {outcome}  {finding.why}")
        print(
            f"{report.model}@{report.number} is what was signed, and says what its files say."
            if report.holds
            else f"{report.model}@{report.number} is not proven: {_failing(report)}"
        )
    if not report.holds:
        raise typer.Exit(GATE)


def _failing(report: Report) -> str:
    failed = len(report.failed)
    how_many = f"{failed} of {len(report.findings)} checks {'fails' if failed == 1 else 'fail'}"
    remedy = "mend that" if report.mendable else "register it anew from its sources"
    return f"{how_many}. Do not serve it; {remedy}."


@app.command()
def key() -> None:
    """Show your signing key, and how to have it trusted."""
    from tasks.lineage import git, signing

    with _told():
        private = signing.signing_key()
        fingerprint = signing.fingerprint(private)
        trusted = signing.trusted_keys(Path()).get(fingerprint)
    print(f"Your key is {fingerprint}, in {private}")
    if trusted is not None and trusted.parent == signing.TRUSTED:
        print(f"This repository trusts it as {trusted}.")
        return
    name = (git.author() or getpass.getuser()).partition("@")[0]
    copy = f"cp {signing.public_half(private)} {signing.TRUSTED}/{name}.pem"
    print(f"Next: `mkdir -p {signing.TRUSTED} && {copy}`, and commit that")


@app.command()
def reproduce(
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A registered version.")],
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the folder in which it was built.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Build here, and keep it; a temporary folder otherwise.")
    ] = None,
    any_environment: Annotated[
        bool, typer.Option("--any-environment", help="Though packages are not as locked.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Largest difference of a weight or metric, if not equal.")
    ] = TOLERANCE,
) -> None:
    """Build a version anew, compare, and note the answer on it."""
    from flows import reproduce as reproduction
    from tasks.lineage.process import Terminated, raise_on_sigterm

    place = folder.absolute() if folder else None
    raise_on_sigterm()  # so that what it started ends with it
    try:
        with _told():
            done = reproduction.reproduce(version, keep, place, any_environment, tolerance, print)
    except Terminated:
        _stop(f"stopped; nothing is noted on {version}", 128 + 15)
    print(f"{version} is {done.answer}", *done.lines(), sep="\n")
    raise typer.Exit(done.exit_code)


@app.command()
def retrain(
    check: Annotated[str, typer.Argument(help="A drift check: a folder of .tunetrail/drift.")],
    now: Annotated[
        bool, typer.Option("--now", help="Pass over cooldown and budget of params.yaml.")
    ] = False,
) -> None:
    """Retrain on what a drift check found; nothing is promoted."""
    from flows import retraining

    with _told(f"run `tunetrail retrain {check}` again when it is back"):
        done = retraining.retrain(check, now)
    print(*done.lines(), sep="\n")
    raise typer.Exit(done.exit_code)


@app.command()
def judge(
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A registered version.")],
) -> None:
    """Let a language model compare a version's answers; note it there."""
    from flows import judge as judgement
    from tasks.params import load

    with _told():
        done = judgement.judge(version, load(Path("params.yaml")).judge, print)
    print(f"{version} is {done.result.answer}", *done.lines(), sep="\n")
    if done.exit_code:
        _stop(
            "It is noted on the version. Mend that, and run it again: it asks what is open.", FAULT
        )
    print(f"Next: `tunetrail promote {version}` shows all that speaks for it")


review_app = typer.Typer(
    help="Have people compare a version's answers, blind.", no_args_is_help=True
)
app.add_typer(review_app, name="review")

REVIEW_ROWS = 50
"""On a page: some ten minutes of somebody's time."""


@review_app.command("export")
def export_review(
    context: typer.Context,
    version: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="A registered version.")],
    against: Annotated[
        str | None,
        typer.Option(
            help="Another candidate of the report; the version's judge.against otherwise."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Of the test, at most.")] = REVIEW_ROWS,
    out: Annotated[
        Path | None, typer.Option(help="The page; review-HASH.html here otherwise.")
    ] = None,
) -> None:
    """Write an HTML page on which people compare answers, blind."""
    from flows import review

    out = context.find_root().obj / out if out else None  # as seen from where it was given
    with _told():
        done = review.export(version, against, rows, out, context.find_root().obj)
    print(
        f"Wrote {done.path}: {len(done.drawn.pairs)} pairs, {done.drawn.final} against "
        f"{done.drawn.against}, of {done.drawn.rows} test rows ({done.drawn.same} with the same answer)"
    )
    print(f"Which side is which stays in {done.key} and with the version; do not send that along.")
    print("Next: give the page to people, and `tunetrail review import` what they bring back")


@review_app.command("import")
def import_votes(
    context: typer.Context,
    files: Annotated[list[Path], typer.Argument(help="What people downloaded from the page.")],
) -> None:
    """Count people's votes, and note them on the version."""
    from flows import review

    with _told():
        done = review.import_([context.find_root().obj / path for path in files])
    print(*done.lines(), sep="\n")
    if done.refused:
        raise typer.Exit(MISUSE)
    print("Next: `tunetrail promote NAME@VERSION` shows all that speaks for it")


@app.command()
def promote(
    candidate: Annotated[
        str,
        typer.Argument(metavar="NAME-candidates@VERSION", help="A registered candidate."),
    ],
    comment: Annotated[str, typer.Option(help="Why, for the audit record.")] = "",
    reviewer: Annotated[
        str | None, typer.Option(help="Who reviewed it; git's user.email otherwise.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; the evidence is seen.")] = False,
    form: Annotated[
        bool, typer.Option("--form", help="Ask in Prefect's pages: reviewer, comment, yes or no.")
    ] = False,
) -> None:
    """Make a candidate the champion, if its evidence holds."""
    from tasks.lineage import git, promotion
    from tasks.params import load

    if form:
        from flows.promote import by_form

        with _told():
            print(by_form(candidate))
        return
    who = reviewer or git.author() or ""
    with _told():
        settings = load(Path("params.yaml")).promote
        case, objections = promotion.examine(candidate, who, settings)
        print(f"{case.reference}, to be promoted to {case.champion_model} by {who}:")
        print(*(f"  {line}" for line in case.lines()), sep="\n")
        if not (yes or objections or typer.confirm("Promote it?")):
            _stop("Nothing was changed.", GATE)
        print(promotion.promote(case.reference, who, comment, settings).line)
    print(f"Next: `tunetrail audit {case.champion_model}` shows who promoted what")


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="A registered model with a champion.")],
    comment: Annotated[str, typer.Option(help="Why, for the audit record.")],
    to: Annotated[
        int | None, typer.Option(help="A version that was champion; the previous one otherwise.")
    ] = None,
    reviewer: Annotated[
        str | None, typer.Option(help="Who decided it; git's user.email otherwise.")
    ] = None,
) -> None:
    """Make an earlier champion the champion again."""
    from tasks.lineage import git, promotion

    with _told():
        print(promotion.rollback(name, to, reviewer or git.author() or "", comment).line)
    print(f"Next: `tunetrail audit {name}` shows who decided what")


@app.command()
def audit(
    name: Annotated[str, typer.Argument(help="A registered model with a champion.")],
) -> None:
    """Show who made what the champion, and whether that record holds."""
    from tasks.lineage import audit, store

    with _told():
        record = audit.read(store.connect(), name, Path())
    for entry in record.entries:
        print(entry.line)
    if record.problems:
        _stop("\n".join(["The record does not hold:", *record.problems]), GATE)
    if record.champion is None:
        print(f"{name} has no champion yet. Next: `tunetrail promote {name}-candidates@VERSION`")
    else:
        print(f"The record holds; version {record.champion.version} is the champion.")


@app.command()
def drift(
    against: Annotated[
        str | None,
        typer.Option(metavar="NAME@VERSION", help="Compare with this one, not the champion."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what drift.json holds, for a program to read.")
    ] = False,
) -> None:
    """Compare what arrived with what the champion learned from."""
    import json

    from flows import drift as drift_check
    from flows.drift_checks import REPORT
    from tasks.params import load

    with _told("only it knows the champion, so nothing was compared"):
        done = drift_check.check(load(Path("params.yaml")), against)
    if as_json:
        told = {"decision": done.decision, "message": done.message, **(done.document or {})}
        print(json.dumps(told, indent=2))
    else:
        print(*done.lines(), sep="\n")
        if done.folder is not None:
            print(f"report: open {done.folder / REPORT}")
    if done.exit_code:
        raise typer.Exit(done.exit_code)


@app.command()
def lineage(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="HASH", help="The beginning of a hash of data, adapter or model; NAME@VERSION."
        ),
    ],
    code: Annotated[bool, typer.Option("--code", help="Show the code that was used, too.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Draw it into this file instead.")] = None,
) -> None:
    """Show what something was made from, and what was made from it."""
    from flows import lineage

    with _told():
        shown = lineage.show(what, code) if svg is None else lineage.draw(what)
    if svg is None:
        print(shown)
        return
    place = context.obj / svg  # as seen from where the command was given
    try:
        place.write_text(shown, encoding="utf-8")
    except OSError as error:
        _stop(f"{place}: {error.strerror}; choose another file", MISUSE)
    print(f"drawn: open {place}")


@app.command()
def doctor() -> None:
    """Find what is wrong with cache, remotes, MLflow and machine."""
    from flows import doctor as examination

    found = examination.examine(print)
    if not found:
        print("All is well.")
        return
    print("1 finding:" if len(found) == 1 else f"{len(found)} findings:")
    for finding in found:
        print(f"  {finding}")
    raise typer.Exit(GATE)


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would go, as without --yes.")
    ] = False,
) -> None:
    """Show, or remove, what no version and no branch needs."""
    from flows import gc as collection

    with _told("it alone knows what registered versions need, so nothing goes"):
        waste = collection.find()
        print(*waste.lines(), sep="\n")
        if dry_run or not yes:
            print("Nothing was removed. Next: `tunetrail gc --yes`")
            return
        collection.remove(waste)
    print("Removed.")
    if waste.by_hand:
        print(f"The runs go where MLflow's database is: `{waste.by_hand}`")


@app.command()
def up(
    host: Annotated[
        str, typer.Option(help="Listen here; other machines cannot reach 127.0.0.1.")
    ] = "127.0.0.1",
    prefect_port: Annotated[int, typer.Option(min=1, max=65535)] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    prefect_database: Annotated[
        str | None,
        typer.Option(
            help="postgresql://USER@HOST/DATABASE or sqlite:////PATH; "
            "PREFECT_SERVER_DATABASE_CONNECTION_URL or ~/.prefect/prefect.db otherwise."
        ),
    ] = None,
    backend_store: Annotated[
        str | None,
        typer.Option(
            help="The same of MLflow; MLFLOW_BACKEND_STORE_URI or mlflow.db of this clone otherwise."
        ),
    ] = None,
    accounts: Annotated[
        bool, typer.Option("--accounts", help="MLflow asks who one is, as `tunetrail server` does.")
    ] = False,
) -> None:
    """Serve Prefect, MLflow and a worker, with all deployments."""
    from flows import up as serving
    from tasks.params import load

    _refuse_password(prefect_database, "PREFECT_SERVER_DATABASE_CONNECTION_URL")
    _refuse_password(backend_store, "MLFLOW_BACKEND_STORE_URI")
    with _told():
        params = load(Path("params.yaml"))
        options = serving.Options(
            host,
            prefect_port,
            mlflow_port,
            prefect_database,
            backend_store or os.environ.get("MLFLOW_BACKEND_STORE_URI"),
            accounts,
        )
        model, notify = params.register_.name, params.retraining.notify
        serving.up(options, model, notify, lambda line: print(line, flush=True))


server_app = typer.Typer(help="Serve a team's MLflow, with accounts and roles.")
user_app = typer.Typer(help="Who may use the server.", no_args_is_help=True)
app.add_typer(server_app, name="server")
server_app.add_typer(user_app, name="user")

ServerFolder = Annotated[
    Path | None,
    typer.Option("--folder", help="Of the server; ~/.local/share/tunetrail/server otherwise."),
]


@server_app.callback(invoke_without_command=True)
def server(
    context: typer.Context,
    backend_store: Annotated[
        str | None,
        typer.Option(
            help="postgresql://USER@HOST/DATABASE or sqlite:////PATH. MLFLOW_BACKEND_STORE_URI, what "
            "it was last time, or a file in the folder otherwise."
        ),
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Where models are kept; in the folder otherwise.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Listen here; other machines cannot reach 127.0.0.1.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that answer.")] = 2,
    folder: ServerFolder = None,
) -> None:
    """Serve a team's MLflow, with accounts and roles, until Ctrl-C."""
    if context.invoked_subcommand is not None:
        return
    from flows import registry_server
    from tasks.params import load

    _refuse_password(backend_store, "MLFLOW_BACKEND_STORE_URI")
    with _told():
        name = load(Path("params.yaml")).register_.name
        home = registry_server.Home(folder or registry_server.default_folder())
        named = backend_store or os.environ.get("MLFLOW_BACKEND_STORE_URI")
        database = registry_server.choose_database(home, named)
        place = artifacts or str(home.artifacts)
        registry_server.serve(home, database, place, host, port, workers, name, print)


@user_app.command("add")
def add_user(
    name: str,
    role: Annotated[str, typer.Option(help="trainer or reviewer")],
    password_file: Annotated[
        Path | None,
        typer.Option(help="Whose first line is the password; asked for otherwise."),
    ] = None,
    folder: ServerFolder = None,
) -> None:
    """Let somebody in as trainer or reviewer; of a user that is known, change password and role."""
    from flows import registry_access, registry_server

    if role not in registry_access.ROLES:
        _stop(f"{role} is no role; --role takes {' or '.join(registry_access.ROLES)}", MISUSE)
    with _told():
        home = registry_server.Home(folder or registry_server.default_folder())
        database = home.database()
        created = registry_access.add_user(database, name, _password(name, password_file), role)
    print(f"{name} is now a {role}" + ("." if created else ", with a new password."))
    print(f"Next: {name} sets MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME and _PASSWORD")


@user_app.command("remove")
def remove_user(name: str, folder: ServerFolder = None) -> None:
    """Let somebody in no more."""
    from flows import registry_access, registry_server

    with _told():
        home = registry_server.Home(folder or registry_server.default_folder())
        registry_access.remove_user(home.database(), name)
    print(f"{name} is no user any more.")


@user_app.command("list")
def list_users(folder: ServerFolder = None) -> None:
    """Show who may use the server, and as what."""
    from flows import registry_access, registry_server

    with _told():
        home = registry_server.Home(folder or registry_server.default_folder())
        roles = registry_access.users(home.database())
    for name, role in sorted(roles.items()):
        print(f"{name:<20}  {role}")
    if not roles:
        print("Nobody yet. Next: `tunetrail server user add NAME --role trainer`")


def _password(name: str, file: Path | None) -> str:
    """From a file, from TUNETRAIL_USER_PASSWORD, or asked for twice."""
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            _stop(f"{file} cannot be read: {error}", MISUSE)
        return lines[0] if lines else ""
    if password := os.environ.get("TUNETRAIL_USER_PASSWORD"):
        return password
    return str(typer.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=True))


def _refuse_password(address: str | None, variable: str) -> None:
    """Stop at a database's address with a password in it, which has another place."""
    from flows.registry_server import has_password

    if address and has_password(address):
        _stop(
            "everyone on this machine can read a password on a command line; put the address into "
            f"{variable}, or the password into ~/.pgpass",
            MISUSE,
        )


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


@contextmanager
def _told(unreachable: str | None = None) -> Iterator[None]:
    """Stop at what the registry or its rooms object to, with its words and exit code.

    Args:
        unreachable: what is to be said when MLflow does not answer, in place of the remedy.
    """
    from tasks.lineage.stage import StageError
    from tasks.lineage.store import Unreachable
    from tasks.params import ParamsError

    try:
        yield
    except Unreachable as error:
        _stop(f"{error}; {unreachable or error.remedy}", FAULT)
    except ParamsError as error:
        _stop(str(error), MISUSE)
    except StageError as error:
        _stop(str(error), error.exit_code)
    except Exception as error:
        from mlflow import MlflowException

        if not isinstance(error, MlflowException):
            raise
        from tasks.lineage.store import brief

        remedy = "see that the name is right, and that your account may do that"
        _stop(f"MLflow refuses: {brief(error)}; {remedy}", FAULT)


def _stop(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(code)
