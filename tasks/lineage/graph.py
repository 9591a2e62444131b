"""What was made from what: a graph of stage runs, the artifacts between them, and versions.

Nothing is asked but provenance documents, which hold hashes alone; two versions that were made from
the same artifact meet in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.lineage import hashes
from tasks.lineage.stage import StageError, record_path

SHORTEST = 4
"""Hex digits that a hash must at least be given by."""


@dataclass(frozen=True, order=True)
class Artifact:
    """A file or folder by path and DVC's md5; `sha256` is None where no stage here made it."""

    path: str
    md5: str
    sha256: str | None = field(compare=False)

    def __str__(self) -> str:
        return f"{self.path} {self.md5[:8]}"


@dataclass(frozen=True, order=True)
class Run:
    """One run of a stage, by the sha256 of its record: the same inputs, code and outputs."""

    stage: str
    digest: str

    def __str__(self) -> str:
        return self.stage


@dataclass(frozen=True, order=True)
class Version:
    """What a provenance document identifies; `name` is NAME@VERSION, or the work tree."""

    name: str
    identity: str
    aliases: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        return f"{self.name}{aliases}, identity {self.identity[:8]}"


Node = Artifact | Run | Version


class Graph:
    """Edges go from what was read to what was made of it."""

    def __init__(self) -> None:
        self.nodes: set[Node] = set()
        self._makers: defaultdict[Node, set[Node]] = defaultdict(set)
        self._uses: defaultdict[Node, set[Node]] = defaultdict(set)

    def add(self, version: Version | None, stages: Iterable[Mapping[str, Any]]) -> None:
        """Add the stages of a provenance document, and the version that they made, if any."""
        made: dict[tuple[str, str], str] = {}
        stages = list(stages)
        notes = {record_path(record["stage"]) for record in stages}  # what this document joins
        for record in stages:
            for path, output in record["outputs"].items():
                made[path, output["md5"]] = output["sha256"]
        for record in stages:
            run = Run(record["stage"], hashes.sha256_json(record))
            for path, md5 in record["inputs"].items():
                if path in notes:
                    continue
                self._join(Artifact(path, md5, made.get((path, md5))), run)
            for path, output in record["outputs"].items():
                artifact = Artifact(path, output["md5"], output["sha256"])
                self._join(run, artifact)
                if version is not None:
                    self._join(artifact, version)

    def _join(self, left: Node, right: Node) -> None:
        for node in (left, right):
            self.nodes.add(node)
        self._makers[right].add(left)
        self._uses[left].add(right)

    def made_from(self, node: Node) -> list[Node]:
        """What a node was directly made from, sorted by name."""
        return sorted(self._makers[node], key=_key)

    def used_by(self, node: Node) -> list[Node]:
        """What was directly made from a node, sorted by name."""
        return sorted(self._uses[node], key=_key)

    def backwards(self, node: Node) -> list[Node]:
        """Everything that a node was made from, each behind what it was itself made from."""
        return self._walk(node, self.made_from)[:-1]

    def forwards(self, node: Node) -> list[Node]:
        """Everything that was made from a node, each behind what it was itself made from."""
        return self._walk(node, self.used_by)[-2::-1]

    def _walk(self, start: Node, beside: Callable[[Node], list[Node]]) -> list[Node]:
        """Depth first, a node behind all that it leads to; without recursion, graphs are deep."""
        ordered: dict[Node, None] = {}
        path: list[tuple[Node, list[Node]]] = [(start, beside(start))]
        while path:
            node, left = path[-1]
            following = next((other for other in left if other not in ordered), None)
            if following is None:
                ordered[node] = None
                path.pop()
            else:
                path.append((following, beside(following)))
        return list(ordered)

    def find(self, text: str) -> list[Node]:
        """The nodes that a text means: a version's NAME@VERSION or NAME@ALIAS, the beginning of an
        identity, or of an artifact's md5 or sha256; then everything with that content.

        Raises:
            StageError: when it means nothing here, or different contents.
        """
        if named := [node for node in self.nodes if isinstance(node, Version) and _is(node, text)]:
            return sorted(named, key=_key)
        wanted = text.lower()
        if len(wanted) < SHORTEST:
            raise StageError(f"{text!r} is too short for a hash; give {SHORTEST} digits or more")
        found = sorted((n for n in self.nodes if _starts(n, wanted)), key=_key)
        if not found:
            raise StageError(
                f"no version, artifact or data here has the hash {text!r}; `dvc.lock` and the tags "
                "of a version in MLflow have hashes, or give NAME@VERSION"
            )
        contents = {_content(node) for node in found}
        if len(contents) > 1:
            listed = "\n".join(f"  {_content(node)} {node}" for node in found)
            raise StageError(f"{text!r} is the beginning of several hashes; add digits:\n{listed}")
        return found


def _key(node: Node) -> tuple[int, str, str]:
    return [Artifact, Run, Version].index(type(node)), str(node), _content(node)


def _content(node: Node) -> str:
    if isinstance(node, Artifact):
        return node.md5
    return node.digest if isinstance(node, Run) else node.identity


def _is(version: Version, text: str) -> bool:
    model = version.name.partition("@")[0]
    return text in (version.name, *(f"{model}@{alias}" for alias in version.aliases))


def _starts(node: Node, text: str) -> bool:
    if isinstance(node, Run):
        return False
    digests = [_content(node), node.sha256 if isinstance(node, Artifact) else None]
    return any(digest is not None and digest.startswith(text) for digest in digests)


def is_code(artifact: Artifact) -> bool:
    """Whether an artifact is what computes rather than what is computed with."""
    return artifact.path.startswith("tasks/") or artifact.path.endswith(".lock")


def describe(graph: Graph, node: Node, code: bool) -> list[str]:
    """Where a node comes from and what became of it, in lines; `code` shows code as well."""
    lines = [_title(node)]
    before, after = graph.backwards(node), graph.forwards(node)
    for title, nodes in (("made from", before), ("went into", after)):
        rows = _rows(graph, nodes, {*before, node, *after}, code)
        lines += ["", title, *(rows or ["  nothing that is known here"])]
    return lines


def _title(node: Node) -> str:
    if isinstance(node, Artifact):
        sha = f", sha256 {node.sha256}" if node.sha256 else ""
        return f"{node.path}, md5 {node.md5}{sha}"
    return str(node)


def _rows(graph: Graph, nodes: list[Node], shown: set[Node], code: bool) -> list[str]:
    """A row a source, a stage and a version; artifacts stand in the rows of their stages."""
    rows: list[tuple[str, str]] = []
    for node in nodes:
        if isinstance(node, Run):
            reads = _names(graph.made_from(node), code)
            writes = _names((n for n in graph.used_by(node) if n in shown), code)
            rows.append((node.stage, f"{reads}  ->  {writes}"))
        elif isinstance(node, Version):
            rows.append(("version", str(node)))
        elif not graph.made_from(node) and (code or not is_code(node)):
            rows.append(("source", str(node)))
    width = max((len(left) for left, _ in rows), default=0)
    return [f"  {left:<{width}}  {right}" for left, right in rows]


def _names(nodes: Iterable[Node], code: bool) -> str:
    artifacts = (node for node in nodes if isinstance(node, Artifact))
    return ", ".join(str(node) for node in artifacts if code or not is_code(node))
