"""What a check found, for people: an HTML page that needs nothing else, a table, Markdown, numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.evaluation import conclusions, markdown
from tasks.evaluation.curves import Tick, nice_ticks

WIDTH, HEIGHT = 300, 140
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 8, 20
TICKS_X, TICKS_Y = 4, 3

HEADLINES = {"drift": "Drift found", "none": "No drift found", "too_few": "Too few rows to tell"}


@dataclass(frozen=True)
class Outlines:
    """Two distributions in one drawing: points of SVG polylines."""

    name: str
    unit: str
    before: str
    now: str
    ticks_x: list[Tick]
    ticks_y: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT


def outlines(name: str, found: Mapping[str, Any]) -> Outlines:
    """Lay out the histograms of both sides on one scale, as outlines."""
    edges = found["edges"]
    ticks_y = nice_ticks(0, max(*found["before"], *found["now"], 1e-9), TICKS_Y)
    span = edges[-1] - edges[0] or 1

    def x(value: float) -> float:
        return round(float(LEFT + (value - edges[0]) / span * (WIDTH - LEFT - RIGHT)), 1)

    def y(share: float) -> float:
        return round(TOP + (1 - share / ticks_y[-1]) * (HEIGHT - TOP - BOTTOM), 1)

    def line(shares: Sequence[float]) -> str:
        points = [(edges[0], 0.0)]
        for at, share in enumerate(shares):
            points += [(edges[at], share), (edges[at + 1], share)]
        points.append((edges[-1], 0.0))
        return " ".join(f"{x(value)},{y(share)}" for value, share in points)

    inside = [
        value
        for value in nice_ticks(edges[0], edges[-1], TICKS_X)
        if edges[0] <= value <= edges[-1]
    ]
    shown = [f"{100 * value:g}%" if found["unit"] == "share" else f"{value:g}" for value in inside]
    return Outlines(
        name=name,
        unit=found["unit"],
        before=line(found["before"]),
        now=line(found["now"]),
        ticks_x=[Tick(x(value), text) for value, text in zip(inside, shown, strict=True)],
        ticks_y=[Tick(y(share), f"{100 * share:g}%") for share in ticks_y],
    )


def render(document: Mapping[str, Any]) -> str:
    """The page of a check."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader([here, here.parent / "evaluation"]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        p_value=p_value, percent=percent, number=conclusions.number, signed=conclusions.signed
    )
    template = environment.get_template("drift.html.j2")
    drawn = {
        like: [outlines(name, one) for name, one in found.get("distributions", {}).items()]
        for like, found in document["statistics"].items()
    }
    rejected = {
        like: list(_rejected(found))
        for like, found in document["statistics"].items()
        if "rejected" in found
    }
    headline = HEADLINES[document["decision"]]
    return (
        template.render(document=document, headline=headline, drawn=drawn, rejected=rejected) + "\n"
    )


def _rejected(found: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Reasons, with the shares of all rows of both sides, the largest change first."""
    before, now = found["rejected"]["before"], found["rejected"]["now"]
    rows = [
        (
            reason,
            before.get(reason, 0) / max(1, found["rows_before"]),
            now.get(reason, 0) / max(1, found["rows_now"]),
        )
        for reason in {*before, *now}
    ]
    yield from sorted(rows, key=lambda row: (-abs(row[2] - row[1]), row[0]))


def p_value(value: float) -> str:
    """A p-value, as people read it."""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def table(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a test, for Prefect."""
    rows = [
        {
            "source": like,
            "test": name,
            "before": test["before"],
            "now": test["now"],
            "effect": test["effect"],
            "least": test["least"],
            "measure": test["measure"],
            "p": p_value(test["adjusted"]),
            "level": round(test["level"], 5),
            "result": "drift" if test["fires"] else "",
        }
        for like, found in document["statistics"].items()
        for name, test in found["tests"].items()
    ]
    for like, one in (document["quality"] or {}).items():
        rows.append(
            {
                "source": like,
                "test": f"champion's {one['metric']}",
                "before": one["before"],
                "now": one["now"],
                "effect": one["difference"]["value"],
                "least": -one["least"],
                "measure": "difference",
                "p": f"{one['difference']['low']:+.3f} to {one['difference']['high']:+.3f}",
                "level": round(1 - one["confidence"], 5),
                "result": "drift" if one["fires"] else "",
            }
        )
    return rows


def markdown_page(
    lines: Sequence[str], document: Mapping[str, Any] | None, links: Mapping[str, str]
) -> str:
    """The check for Prefect's page of the run.

    Args:
        links: addresses by what they lead to.
    """
    head, *rest = lines
    page = [
        f"## {markdown.escape(head)}",
        "",
        *(f"- {markdown.escape(line.strip())}" for line in rest),
    ]
    if document is not None:
        page += [
            "",
            "| source | test | effect | least | p | |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        page += [
            f"| {markdown.escape(row['source'])} | {markdown.escape(row['test'])} | {row['effect']:.3g} "
            f"| {row['least']:g} | {row['p']} | {row['result']} |"
            for row in table(document)
        ]
    page += ["", *(f"- {markdown.escape(what)}: <{where}>" for what, where in links.items())]
    return "\n".join(page) + "\n"


def numbers(document: Mapping[str, Any]) -> dict[str, float]:
    """The check as metrics of MLflow, whose names take few characters."""
    found: dict[str, float] = {"fired": float(document["fired"])}
    for like, one in document["statistics"].items():
        found |= {f"{like}/rows": one["rows_now"]}
        for name, test in one["tests"].items():
            found[f"{like}/{name}/effect"] = test["effect"]
            found[f"{like}/{name}/p"] = test["p_value"]
            if test["now"] is not None:
                found[f"{like}/{name}/now"] = test["now"]
    for like, quality in (document["quality"] or {}).items():
        found[f"{like}/quality/{quality['metric']}"] = quality["now"]
        found[f"{like}/quality/difference"] = quality["difference"]["value"]
    return {re.sub(r"[^\w./ -]", "_", name): value for name, value in found.items()}
