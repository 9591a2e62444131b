"""The stage runner: what turns a plain function into a DVC stage.

A stage module ends in::

    if __name__ == "__main__":
        stage.main(run)

and `run` is a plain function of paths and sections of params.yaml::

    def run(data: Path, out: Out, sft: Sft, compute: Compute) -> Metrics

The command line comes from the signature: a `Path` is an input, an `Out` an output, both required
options; a section is read from params.yaml.  The runner checks all of params.yaml, fixes what decides
the bits, takes the stage's lock, records the run, and puts the outputs in place only when the stage is
done.  It writes what the function returns to the stage's metrics file, and a record of the hashes of
all inputs and outputs beside it, both where dvc.yaml says.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import shlex
import shutil
import subprocess
import sys
import traceback
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

from ruamel.yaml import YAML

from tasks.lineage import chosen, compute, hashes, machine, process, tracking, unfinished, whole
from tasks.lineage.console import log, setup
from tasks.params import Params, ParamsError, Section, load

Out = Annotated[Path, "a file or folder that the stage writes"]
Beside = Annotated[Path, "a folder that people look at; no stage reads it, DVC does not track it"]
Metrics = Mapping[str, Any]
"""Numbers by name, or such mappings by name; without clock readings (law 5 of the design)."""

DONE, GATE, MISUSE, FAULT = 0, 1, 2, 3
"""Exit codes: done, a gate said no, misuse or bad input, an environment fault."""

STATE = Path(".tunetrail")
"""Locks, spool, failures and what interrupted stages keep, of this work tree; not in git, safe to delete
when nothing runs."""


class StageError(Exception):
    """A stage cannot go on. The message says what, where, and how to mend it."""

    exit_code = MISUSE


class GateError(StageError):
    """The stage worked, and a check that it makes said no."""

    exit_code = GATE


@dataclass(frozen=True)
class Wiring:
    """What dvc.yaml declares of a stage, in the order of the file."""

    deps: list[str]
    params: list[str]
    outs: list[str]
    metrics: str | None
    record: str | None


def record_path(stage: str) -> str:
    """Where a stage writes its record."""
    return f"models/records/{stage}.json"


def wiring(stage: str, dvc_yaml: Path = Path("dvc.yaml")) -> Wiring:
    """Read a stage of dvc.yaml.  `outs` leaves out the metrics file and the record."""
    entry = YAML(typ="safe").load(dvc_yaml.read_text(encoding="utf-8"))["stages"][stage]

    def paths(key: str) -> list[str]:
        return [next(iter(item)) if isinstance(item, dict) else item for item in entry.get(key, [])]

    record, metrics = record_path(stage), f"models/{stage}.metrics.json"
    written = [*paths("outs"), *paths("metrics")]
    return Wiring(
        deps=paths("deps"),
        params=paths("params"),
        outs=[path for path in written if path not in (record, metrics)],
        metrics=metrics if metrics in written else None,
        record=record if record in written else None,
    )


def arguments(run: Callable[..., Metrics], dvc_yaml: Path = Path("dvc.yaml")) -> dict[str, Path]:
    """The paths with which dvc.yaml calls a stage, by parameter."""
    name = _name(run)
    command = YAML(typ="safe").load(dvc_yaml.read_text(encoding="utf-8"))["stages"][name]["cmd"]
    return _parse(run, name, shlex.split(command)[len(["python", "-m", "module"]) :])


def main(run: Callable[..., Metrics]) -> NoReturn:
    """Run a stage from the command line and exit."""
    name = _name(run)
    arguments = _parse(run, name, sys.argv[1:])
    setup(name)
    try:
        params = load(Path("params.yaml"))
    except ParamsError as error:
        _fail(name, str(error), MISUSE)
    if lacking := compute.lacking(params.compute.instruction_set, machine.cpu_flags()):
        _fail(name, f"compute.instruction_set: {lacking}", FAULT)
    if not compute.pinned(params.compute):  # most of it is read once, when the process starts
        environment = {**os.environ, **compute.environment(params.compute)}
        os.execve(
            sys.executable, [sys.executable, "-m", f"tasks.{name}", *sys.argv[1:]], environment
        )
    process.raise_on_sigterm()
    process.die_with_parent()
    try:
        with process.only_writer(name, STATE / "locks"):
            _failure_file(name).unlink(missing_ok=True)
            _execute(run, name, arguments, params)
    except (StageError, process.Busy) as error:
        _fail(name, str(error), getattr(error, "exit_code", FAULT))
    except (KeyboardInterrupt, process.Terminated) as error:
        _fail(name, str(error) or "stopped before it was done; run again", 128 + 15)
    except Exception as error:
        if whole.is_disk_full(error):
            _fail(name, _no_room(error), FAULT)
        traceback.print_exc()
        _fail(name, f"{type(error).__name__}: {error}", FAULT)
    sys.exit(DONE)


def _execute(
    run: Callable[..., Metrics], name: str, arguments: dict[str, Path], params: Params
) -> None:
    plan = wiring(name)
    sections = _sections(run, params)
    inputs = {path: hashes.dvc_md5(_existing(name, Path(path))) for path in plan.deps}
    outputs = {key: path for key, path in arguments.items() if _role(run, key) is Out}
    partial = {key: whole.partial(path) for key, path in outputs.items()}
    for path in outputs.values():
        whole.recover(path)  # from a run that was killed
        path.parent.mkdir(parents=True, exist_ok=True)

    spool = tracking.Spool(STATE / "spool", name, params.register_.name)
    values = {
        key: section.model_dump(mode="json", by_alias=True) for key, section in sections.items()
    }
    # No input of the stage, since another rubric trains nothing anew; but when it was fixed counts.
    rubric = {"judge": {"rubric_sha256": params.judge.rubric_sha256}}
    spool.start({**values, **rubric}, {f"in:{path}": digest for path, digest in inputs.items()})
    tracking.use(spool)
    kept = unfinished.place(STATE / "unfinished", name, inputs, values)
    unfinished.use(kept)
    chosen.forget()
    courier = _start_courier()
    status: tracking.Status = "FAILED"
    try:
        metrics = run(**{**arguments, **partial, **{key: sections[key] for key in sections}})
        for key, path in outputs.items():
            _put(partial[key], path)
        if plan.metrics:
            whole.write_json(Path(plan.metrics), metrics)
        if plan.record:
            whole.write_json(Path(plan.record), _record(name, plan, values, inputs))
        tracking.log_metrics(dict(_numbers(metrics)))
        for out in plan.outs:
            tracking.log_tag(f"out:{out}", hashes.dvc_md5(Path(out)))
        whole.remove(kept)
        status = "FINISHED"
    except (KeyboardInterrupt, process.Terminated):
        status = "KILLED"
        raise
    finally:
        for path in partial.values():
            whole.remove(path)
        unfinished.use(None)
        tracking.use(None)
        spool.end(status)
        _wait_for(courier)


def _name(run: Callable[..., Metrics]) -> str:
    spec = run.__globals__.get("__spec__")
    module: str = spec.name if spec else run.__module__
    return module.rpartition(".")[2]


def _hints(run: Callable[..., Metrics]) -> dict[str, Any]:
    hints = typing.get_type_hints(run, include_extras=True)
    return {name: hints[name] for name in inspect.signature(run).parameters}


def _role(run: Callable[..., Metrics], parameter: str) -> Any:
    return _hints(run)[parameter]


def _sections(run: Callable[..., Metrics], params: Params) -> dict[str, Section]:
    """The sections that the signature asks for: a parameter's type decides, its name is free."""
    by_type = {type(section): section for section in params.each().values()}
    return {name: by_type[hint] for name, hint in _hints(run).items() if hint in by_type}


def sections_read(run: Callable[..., Metrics]) -> set[type[Section]]:
    """The classes of the sections that a stage's signature asks for."""
    return {
        hint
        for hint in _hints(run).values()
        if isinstance(hint, type) and issubclass(hint, Section)
    }


def _parse(run: Callable[..., Metrics], name: str, argv: list[str]) -> dict[str, Path]:
    parser = argparse.ArgumentParser(
        prog=f"python -m tasks.{name}",
        description=inspect.getdoc(run),
        epilog="Values come from params.yaml. `dvc repro` calls this with the paths of dvc.yaml.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for parameter, hint in _hints(run).items():
        if typing.get_origin(hint) is Annotated or hint is Path:
            text = hint.__metadata__[0] if hint is not Path else "an input"
            option = f"--{parameter.replace('_', '-')}"
            parser.add_argument(option, type=Path, required=True, metavar="PATH", help=text)
    return vars(parser.parse_args(argv))


def _existing(name: str, path: Path) -> Path:
    if path.exists():
        return path
    raise StageError(
        f"{path}, which {name} reads, does not exist; `dvc repro {name}` makes it first"
    )


def _put(partial: Path, path: Path) -> None:
    if not partial.exists():
        raise StageError(f"the stage ended without writing {path}; this is a fault of its code")
    whole.put(partial, path)


def _record(
    name: str, plan: Wiring, params: Mapping[str, Any], inputs: Mapping[str, str]
) -> dict[str, Any]:
    """What made what, by content alone; `register` joins these into the provenance."""
    outs = [*plan.outs, *([plan.metrics] if plan.metrics else [])]
    return {
        "stage": name,
        "params": params,
        "inputs": dict(inputs),
        **chosen.noted(),
        "outputs": {
            out: {"md5": hashes.dvc_md5(Path(out)), "sha256": hashes.sha256(Path(out))}
            for out in outs
        },
    }


def _numbers(metrics: Metrics, prefix: str = "") -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat += _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat.append((prefix + key, value))
    return flat


COURIER_PATIENCE_SECONDS = 60.0


def _start_courier() -> subprocess.Popen[bytes]:
    """Carry the spool to MLflow while the stage computes."""
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.lineage.courier", str(STATE / "spool")],
        stdin=subprocess.PIPE,
        start_new_session=True,  # whatever stops the stage's group, its end is still news
    )


def _wait_for(courier: subprocess.Popen[bytes]) -> None:
    """Closing its input tells the courier that no more is to come."""
    if courier.stdin:
        courier.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        courier.wait(COURIER_PATIENCE_SECONDS)
        return
    courier.kill()
    log.warning("MLflow took too long; the run waits in %s for the next stage", STATE / "spool")


def _no_room(error: Exception) -> str:
    place = Path(getattr(error, "filename", None) or ".").absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    return (
        f"the disk is full ({error}): {free:,} bytes are free at {place}; outputs are what they were. "
        "Free some space (`tunetrail gc` says what may go; files can run out too, `df -i`), run again"
    )


def _failure_file(name: str) -> Path:
    return STATE / "failures" / f"{name}.txt"


def failure(name: str) -> str | None:
    """The message with which a stage failed last, for the flow to show."""
    path = _failure_file(name)
    return path.read_text(encoding="utf-8") if path.exists() else None


def _fail(name: str, message: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError):  # a full disk is what many a message tells of
        whole.write_text(_failure_file(name), message)
    log.error("failed: %s", message)
    sys.exit(code)
