"""A lineage graph as an SVG that needs nothing else: stages from top to bottom, hashes in them."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from tasks.lineage.graph import Artifact, Graph, Node, Run, Version, is_code

_WIDTH, _GAP_X, _GAP_Y = 290, 30, 46
_LINE, _PADDING = 16, 10


@dataclass
class _Box:
    node: Node
    lines: list[str]
    x: float = 0
    y: float = 0

    @property
    def height(self) -> int:
        return _LINE * len(self.lines) + 2 * _PADDING


def svg(graph: Graph, nodes: Collection[Node], marked: Collection[Node] = ()) -> str:
    """Stage runs, versions and sources among `nodes`, with an edge where an artifact goes over.

    An edge is left out where others lead the same way; what a stage read stands in its box, and what
    it wrote, if that is among `nodes`.
    Colours are the page's own (`currentColor`), so it reads in light and dark.  A box whose stage
    wrote one of `marked`, or that is one, has a thick line.
    """
    boxes = {node: _Box(node, _lines(graph, node, nodes)) for node in sorted(nodes, key=str)}
    boxes = {node: box for node, box in boxes.items() if box.lines}
    edges = _shortest(
        {node: {other for other in _origins(graph, node) if other in boxes} for node in boxes}
    )
    width, height = _place(boxes, edges)
    strong = {_origin(graph, node) if isinstance(node, Artifact) else node for node in marked}
    parts = [_edge(boxes[left], boxes[right]) for left, right in edges]
    parts += [_box(box, node in strong) for node, box in boxes.items()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="Lineage" '
        'font-family="system-ui, sans-serif" font-size="12" fill="currentColor">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _origin(graph: Graph, artifact: Node) -> Node:
    """The run that wrote an artifact, or the artifact itself where none did."""
    return next(iter(graph.made_from(artifact)), artifact)


def _origins(graph: Graph, node: Node) -> set[Node]:
    """The runs and sources that what a node was made from comes from."""
    return {_origin(graph, artifact) for artifact in graph.made_from(node)} - {node}


def _shortest(needs: dict[Node, set[Node]]) -> list[tuple[Node, Node]]:
    """The edges between which no other way leads (the transitive reduction)."""
    all_needs: dict[Node, set[Node]] = {}

    def reach(node: Node) -> set[Node]:
        if node not in all_needs:
            all_needs[node] = set().union(needs[node], *(reach(other) for other in needs[node]))
        return all_needs[node]

    return [
        (left, right)
        for right in needs
        for left in sorted(needs[right], key=str)
        if not any(left in reach(other) for other in needs[right])
    ]


def _lines(graph: Graph, node: Node, shown: Collection[Node]) -> list[str]:
    """What a box says; nothing for what has no box: code, and what a run wrote."""
    if isinstance(node, Version):
        aliases = [", ".join(node.aliases)] if node.aliases else []
        return [node.name, f"identity {node.identity[:12]}", *aliases]
    if isinstance(node, Run):
        written = [str(artifact) for artifact in graph.used_by(node) if artifact in shown]
        origins = _origins(graph, node)
        read = sorted(str(origin) for origin in origins if _lines(graph, origin, shown))
        return [node.stage, f"from {', '.join(_plain(name) for name in read)}", *written]
    if is_code(node) or graph.made_from(node):
        return []
    return [node.path, node.md5[:12]]


def _plain(name: str) -> str:
    """A source without its hash."""
    return name.partition(" ")[0]


def _place(boxes: dict[Node, _Box], edges: list[tuple[Node, Node]]) -> tuple[float, float]:
    """Give each box a place: a row behind all that it needs, near the middle of these in the row."""
    needs: defaultdict[Node, list[Node]] = defaultdict(list)
    for left, right in edges:
        needs[right].append(left)
    rank: dict[Node, int] = {}

    def depth(node: Node) -> int:
        if node not in rank:
            rank[node] = 1 + max((depth(other) for other in needs[node]), default=-1)
        return rank[node]

    rows: defaultdict[int, list[Node]] = defaultdict(list)
    for node in boxes:
        rows[depth(node)].append(node)
    width = max((len(row) for row in rows.values()), default=1) * (_WIDTH + _GAP_X) + _GAP_X
    top = float(_PADDING)
    for number in sorted(rows):
        row = sorted(rows[number], key=lambda node: (_middle(boxes, needs[node]), str(node)))
        start = (width - len(row) * (_WIDTH + _GAP_X) + _GAP_X) / 2
        for place, node in enumerate(row):
            boxes[node].x, boxes[node].y = start + place * (_WIDTH + _GAP_X), top
        top += max(boxes[node].height for node in row) + _GAP_Y
    return width, top - _GAP_Y + _PADDING


def _middle(boxes: dict[Node, _Box], nodes: list[Node]) -> float:
    return sum(boxes[node].x for node in nodes) / len(nodes) if nodes else 0.0


def _edge(left: _Box, right: _Box) -> str:
    x1, y1 = left.x + _WIDTH / 2, left.y + left.height
    x2, y2 = right.x + _WIDTH / 2, right.y
    bend = min((y2 - y1) / 2, _GAP_Y)
    return (
        f'<path d="M{x1:.0f} {y1:.0f} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} '
        f'{x2:.0f} {y2:.0f}" fill="none" stroke="currentColor" stroke-opacity="0.5"/>'
    )


def _box(box: _Box, strong: bool) -> str:
    stroke = "2.5" if strong else "1"
    title, *rest = box.lines
    text = (
        f'<text x="{box.x + _PADDING:.0f}" y="{box.y + _PADDING + 12:.0f}" font-weight="600">'
        f"{html.escape(title)}</text>"
    )
    for number, line in enumerate(rest, start=1):
        y = box.y + _PADDING + 12 + number * _LINE
        text += (
            f'<text x="{box.x + _PADDING:.0f}" y="{y:.0f}" fill-opacity="0.75">'
            f"{html.escape(line)}</text>"
        )
    return (
        f'<rect x="{box.x:.0f}" y="{box.y:.0f}" width="{_WIDTH}" height="{box.height}" rx="6" '
        f'fill="none" stroke="currentColor" stroke-width="{stroke}"/>{text}'
    )
