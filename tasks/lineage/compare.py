"""How far two builds of the same output lie apart, and what went into them that differs."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.lineage import hashes

PICTURES = (".html", ".png", ".svg")
"""For people; the numbers that they show are compared where a stage writes them."""

_DIGEST = re.compile(r"(?:[0-9a-f]{32}(?:\.dir)?|[0-9a-f]{40}|[0-9a-f]{64})\Z")


@dataclass
class Largest:
    """The largest difference among some numbers, and where it is."""

    absolute: float = 0.0
    relative: float = 0.0
    where: str = ""

    def see(self, absolute: float, relative: float, where: str) -> None:
        if absolute > self.absolute:
            self.absolute, self.where = absolute, where
        self.relative = max(self.relative, relative)


@dataclass
class Distance:
    """What lies between two builds."""

    weights: Largest = field(default_factory=Largest)
    metrics: Largest = field(default_factory=Largest)
    """Of numbers in JSON, CSV and JSON lines."""
    unequal: list[str] = field(default_factory=list)
    """What differs and is no number, a line each: such builds are different, not close."""
    pictures: list[str] = field(default_factory=list)
    """What differs and is not compared."""

    def within(self, tolerance: float) -> bool:
        """Whether no weight and no metric differs by more, in absolute terms."""
        return not self.unequal and max(self.weights.absolute, self.metrics.absolute) <= tolerance


def outputs(recorded: Path, rebuilt: Path, name: str, distance: Distance) -> None:
    """Add to `distance` what lies between two builds of an output, a file or a folder, that the
    DAG calls `name`.  Weights are those of safetensors and ONNX files."""
    if recorded.is_file() and rebuilt.is_file():
        _files(recorded, rebuilt, name, distance)
        return
    before, after = (hashes.manifest(folder) for folder in (recorded, rebuilt))
    for file in sorted(before.keys() ^ after.keys()):
        was = "is no longer written" if file in before else "was not written before"
        distance.unequal.append(f"{name}/{file} {was}")
    for file in sorted(before.keys() & after.keys()):
        if before[file] != after[file]:
            _files(recorded / file, rebuilt / file, f"{name}/{file}", distance)


def inputs(recorded: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> list[str]:
    """What went into a stage and differs, a line each, from the stage's two records."""
    before, after = recorded["inputs"], rebuilt["inputs"]
    differing = [
        f"{kind_of(path)} {path}: was {before.get(path, 'no input')}, is {after.get(path, 'none')}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    return (
        differing + params(recorded["params"], rebuilt["params"]) + circumstances(recorded, rebuilt)
    )


def circumstances(recorded: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> list[str]:
    """What a stage chose by its machine and what of the machine it went by, where both records tell."""
    return [
        f"{what} {key}: was {before.get(key, 'absent')!r}, is {after.get(key, 'absent')!r}"
        for what in ("machine", "resolved")
        if (before := recorded.get(what)) and (after := rebuilt.get(what))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def params(recorded: Mapping[str, Any], rebuilt: Mapping[str, Any]) -> list[str]:
    """The values that differ, a line each."""
    before, after = dict(flat(recorded)), dict(flat(rebuilt))
    return [
        f"params {key}: was {before.get(key, 'absent')!r}, is {after.get(key, 'absent')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def facts(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """The facts of a machine that differ, of those that were recorded."""
    before, after = dict(flat(recorded)), dict(flat(here))
    return [
        f"machine {key}: was {value!r}, is {after.get(key, 'absent')!r}"
        for key, value in before.items()
        if after.get(key) != value
    ]


def kind_of(path: str) -> str:
    """What an input is to a stage: its code, its data, or the lock file."""
    if path.endswith(".lock"):
        return "lock"
    return "code" if path.split("/")[0] in ("tasks", "flows") or path.endswith(".py") else "data"


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, by dotted key."""
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from flat(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner


def _files(recorded: Path, rebuilt: Path, name: str, distance: Distance) -> None:
    if hashes.sha256(recorded) == hashes.sha256(rebuilt):
        return
    if recorded.suffix in PICTURES:
        distance.pictures.append(name)
        return
    try:
        if recorded.suffix == ".safetensors":
            _tensors(_safetensors(recorded), _safetensors(rebuilt), name, distance)
        elif recorded.suffix == ".onnx" or recorded.name.endswith(".onnx.data"):
            _onnx(_model(recorded), _model(rebuilt), name, distance)
        elif recorded.suffix == ".json":
            _values(_json(recorded), _json(rebuilt), name, distance)
        elif recorded.suffix == ".jsonl":
            _values(_json_lines(recorded), _json_lines(rebuilt), name, distance)
        elif recorded.suffix == ".csv":
            _values(_table(recorded), _table(rebuilt), name, distance)
        else:
            distance.unequal.append(f"{name} has other bytes, and is no file of numbers")
    except (ValueError, OSError) as error:
        distance.unequal.append(f"{name} cannot be read: {error}")


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _tensors(
    before: Mapping[str, Any], after: Mapping[str, Any], name: str, distance: Distance
) -> None:
    import torch

    def shape(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {key: (tuple(tensor.shape), str(tensor.dtype)) for key, tensor in tensors.items()}

    if shape(before) != shape(after):
        distance.unequal.append(f"{name} has other tensors")
        return
    for key, one in before.items():
        other = after[key]
        if torch.equal(one, other):
            continue
        if not one.is_floating_point():
            distance.unequal.append(f"{name}: {key} holds whole numbers, and others than before")
            continue
        apart = (one.double() - other.double()).abs()
        if not bool(torch.isfinite(apart).all()):
            distance.unequal.append(f"{name}: {key} is not finite everywhere")
            continue
        size = torch.maximum(one.double().abs(), other.double().abs())
        relative = torch.where(apart > 0, apart / size, torch.zeros_like(apart))
        distance.weights.see(float(apart.max()), float(relative.max()), f"{name}: {key}")


def _model(path: Path) -> Path:
    """The ONNX file that a file with its weights belongs to."""
    return path.with_name(path.name.removesuffix(".data"))


def _onnx(before: Path, after: Path, name: str, distance: Distance) -> None:
    import onnx
    import torch
    from onnx import numpy_helper

    def read(path: Path) -> tuple[bytes, dict[str, Any]]:
        model = onnx.load(path)  # with the weights that lie beside it
        weights = {
            entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy())
            for entry in model.graph.initializer
        }
        del model.graph.initializer[:]
        return model.SerializeToString(deterministic=True), weights

    (graph, weights), (other_graph, other_weights) = read(before), read(after)
    if graph != other_graph:
        distance.unequal.append(f"{name} has another graph")
        return
    _tensors(weights, other_weights, name, distance)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _table(path: Path) -> list[list[float | str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [[_number(cell) for cell in row] for row in csv.reader(file)]


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _values(before: Any, after: Any, where: str, distance: Distance) -> None:
    if _is_number(before) and _is_number(after):
        apart = abs(before - after)
        if before == after:
            return
        if math.isfinite(apart):
            distance.metrics.see(apart, apart / max(abs(before), abs(after)), where)
        else:
            distance.unequal.append(f"{where}: was {before}, is {after}")
    elif isinstance(before, dict) and isinstance(after, dict) and before.keys() == after.keys():
        for key in before:
            _values(before[key], after[key], f"{where}: {key}", distance)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            _values(one, other, f"{where}[{index}]", distance)
    elif type(before) is type(after) and before == after:
        return
    elif not (_is_digest(before) and _is_digest(after)):  # those follow what they are hashes of
        was, now = (json.dumps(value, ensure_ascii=False)[:80] for value in (before, after))
        distance.unequal.append(f"{where}: was {was}, is {now}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and bool(_DIGEST.match(value))
