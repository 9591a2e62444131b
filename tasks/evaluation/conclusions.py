"""What the numbers say, in plain sentences: the same ones on the page, in the card, on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.evaluation import contamination
from tasks.evaluation.statistics import Estimate

Document = Mapping[str, Any]
"""models/evaluate.metrics.json."""

METHODS = {
    "base": "the base model with the best of the prompts",
    "base_few_shot": "the base model with solved examples in the prompt",
    "base_retrieval": "the base model with retrieved text in the prompt",
    "classical": "TF-IDF with logistic regression",
    "champion": "the champion to compare with",
    "cpt": "after continued pretraining",
    "sft": "after supervised fine-tuning",
    "dpo": "after preference tuning",
}
"""What the names of the candidates mean, in the order of the document."""

_SHORT = {
    "better": "Yes",
    "worse": "No, worse",
    "inside the noise": "Not shown: inside the noise",
}
_WHY = {
    "better": "all of it above zero",
    "worse": "all of it below zero",
    "inside the noise": "which holds zero: these rows do not tell the two apart",
}
CANNOT_FAIL = "cannot fail here"


@dataclass(frozen=True)
class Answer:
    """A reviewer's question with its answer in a few words, and the numbers behind it."""

    question: str
    short: str
    text: str


def number(value: float | None) -> str:
    """Three decimals; fewer digits where a number is large."""
    if value is None:
        return "not measured"
    if abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:,.0f}" if abs(value) < 1e6 else f"{value:.1e}"


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return number(value) if value is None or value <= 0 else f"+{number(value)}"


def percent(confidence: float) -> str:
    return f"{100 * confidence:g}%"


def interval(estimate: Estimate, confidence: float) -> str:
    if estimate["low"] is None or estimate["high"] is None:
        return "no interval"
    low, high = number(estimate["low"]), number(estimate["high"])
    return f"{percent(confidence)} interval {low} to {high}"


def p_value(value: float | None) -> str:
    if value is None:
        return ""
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def method(name: str) -> str:
    """A candidate's name with its meaning."""
    return f"{name}, {METHODS[name]}" if name in METHODS else name


def against_simpler(document: Document, confidence: float) -> Answer:
    """Whether the final candidate is better than the best simpler method."""
    question = "Better than the best simpler method?"
    found = document["comparisons"]["simpler"]
    if found is None:
        return Answer(question, "Not compared", "No simpler method is switched on in evaluate.")
    return _answer(
        question, found, f"the best simpler method ({method(found['right'])})", confidence
    )


def against_champion(
    document: Document, gates: Sequence[Mapping[str, Any]], confidence: float
) -> Answer:
    """Whether the final candidate is better than the champion."""
    question = "Better than the champion?"
    found = document["comparisons"]["champion"]
    held = [gate for gate in gates if gate["gate"] == "champion"]
    if found is None:
        why = held[0]["why"] if held else "no champion is set in evaluate.champion"
        return Answer(question, "Not compared", f"{why[0].upper()}{why[1:]}.")
    answer = _answer(question, found, "the champion", confidence)
    if by_source := document.get("champion_by_source"):
        parts = [_of_source(source, part) for source, part in by_source.items() if part]
        answer = replace(answer, text=f"{answer.text} By source: {'; '.join(parts)}.")
    if held:
        return answer
    return replace(
        answer,
        text=f"{answer.text} No gate asks for it, so the verdict does not depend on the champion: "
        "evaluate.gates.champion is null.",
    )


def _of_source(source: str, found: Mapping[str, Any]) -> str:
    left, right = number(found["left_value"]), number(found["right_value"])
    return f"{left} against {right} on {found['rows']:,} rows of {source} ({found['says']})"


def _answer(question: str, found: Mapping[str, Any], other: str, confidence: float) -> Answer:
    left, right = number(found["left_value"]), number(found["right_value"])
    text = (
        f"{found['left']} reaches {found['metric']} {left}, {other} {right}, on {found['rows']:,} "
        f"rows of the {found['split']}."
    )
    difference = found["difference"]
    if difference["value"] is None:
        return Answer(question, "Not measured", text)
    text += (
        f" Difference {signed(difference['value'])}, {interval(difference, confidence)}, "
        f"{_why(found)}."
    )
    if found["says"] == "inside the noise" and found["resolvable"] is not None:
        text += f" Differences from about {number(found['resolvable'])} on would show."
    return Answer(question, _SHORT[found["says"]], text)


def _why(found: Mapping[str, Any]) -> str:
    """What a comparison says, by its interval; where that lies beside zero, by McNemar's test."""
    low, high = found["difference"]["low"], found["difference"]["high"]
    if found["says"] != "inside the noise" or (
        low is not None and high is not None and low <= 0 <= high
    ):
        return _WHY[found["says"]]
    if low is None or high is None:
        return "so these rows do not tell the two apart"
    test = f" (p {p_value(found['p_value'])})" if found["p_value"] is not None else ""
    return (
        "which lies beside zero, but so few rows are right with one of the two alone that McNemar's "
        f"test calls it luck{test}: these rows do not tell the two apart"
    )


def result(gate: Mapping[str, Any]) -> str:
    """Whether a gate holds, in a word; one that passes whatever the candidate does is no evidence."""
    if not gate["passed"]:
        return "fails"
    return "holds" if gate.get("could_fail", True) else CANNOT_FAIL


def gates_held(gates: Sequence[Mapping[str, Any]]) -> str:
    """How many gates hold, not counting those that cannot fail."""
    results = [result(gate) for gate in gates]
    empty = results.count(CANNOT_FAIL)
    told = f"{results.count('holds')} of {len(gates)} hold"
    return f"{told}, {empty} cannot fail here" if empty else told


def gate_name(gate: Mapping[str, Any]) -> str:
    """What a gate looks at."""
    kinds = {"simpler": "the best simpler method", "champion": "the champion"}
    if gate["gate"] in kinds:
        return f"{gate['metric']} against {kinds[gate['gate']]}"
    return str(gate["metric"])


def headline(document: Document, verdict: Mapping[str, Any], confidence: float) -> list[Answer]:
    """What a reviewer asks first: is it better than what is simpler, and than what is in use."""
    answers = [against_simpler(document, confidence)]
    if document["comparisons"]["champion"]:
        answers.append(against_champion(document, verdict["gates"], confidence))
    return answers


def reservations(document: Document, verdict: Mapping[str, Any], confidence: float) -> list[Answer]:
    """What a reviewer asks next."""
    answers = [forgotten(document, confidence), trained_on(verdict["contaminated_share"])]
    if not document["comparisons"]["champion"]:
        answers.insert(0, against_champion(document, verdict["gates"], confidence))
    return answers


def forgotten(document: Document, confidence: float) -> Answer:
    """What the tuned model has lost on general rows."""
    question = "Did it forget what the base model could do?"
    found = document["forgetting"]
    if found is None:
        return Answer(question, "Not measured", "There are no general rows to measure it on.")
    parts, short = [], []
    ratio = found["perplexity_ratio"]
    if ratio["value"] is not None:
        short.append(f"Perplexity {number(ratio['value'])} times the base model's")
        parts.append(
            f"On {found['rows']:,} general rows the perplexity of the expected answers is "
            f"{number(ratio['value'])} times that of the base model "
            f"({interval(ratio, confidence)}; above 1 is worse)."
        )
    for kind, what in (("following", "General instructions"), ("form", "The expected form")):
        measured = found.get(kind)
        if measured is None or measured["difference"]["value"] is None:
            continue
        change, metric = measured["difference"], measured["metric"]
        if kind == "following":
            moved = signed(change["value"]) if change["value"] else "unchanged"
            short.append(f"{metric} {moved}")
        parts.append(
            f"{what} ({metric}): {number(measured['base']['value'])} before, "
            f"{number(measured['final']['value'])} after, "
            f"difference {signed(change['value'])} ({interval(change, confidence)})."
        )
    if not parts:
        return Answer(question, "Not measured", "Nothing could be measured on the general rows.")
    return Answer(question, "; ".join(short), " ".join(parts))


def trained_on(contaminated: Estimate, split: str = "test") -> Answer:
    """Whether the score is honest: how much of what was tested had been trained on."""
    question = f"Was the {split} seen in training?"
    if contaminated["value"] is None:
        return Answer(
            question, "Not judged", "Whether its rows stand in the training data was not judged."
        )
    share = f"{100 * contaminated['value']:.1f}%"
    return Answer(
        question,
        f"Yes, {share} of it" if contaminated["value"] else "No",
        f"{share} of the {split}'s rows that can be judged stand in the training data.",
    )


def shown_metrics(
    document: Document, gates: Sequence[Mapping[str, Any]], split: str, most: int
) -> list[str]:
    """The metrics that a table shows at once: the primary one, those with a gate, then others; not
    the contaminated share, which is the same for every candidate and stands with the split."""
    measured = dict.fromkeys(
        metric for splits in document["candidates"].values() for metric in splits.get(split, {})
    )
    wanted = [document["primary"], *(gate["metric"] for gate in gates if gate["gate"] == "metric")]
    first = [metric for metric in dict.fromkeys(wanted) if metric in measured]
    rest = [metric for metric in measured if metric not in first]
    return [metric for metric in [*first, *rest] if metric != contamination.METRIC][:most]


def sliced(slices: Sequence[Mapping[str, Any]]) -> str:
    """Where the final candidate is better or worse than the other, of all slices."""
    judged = [one for one in slices if one["p_holm"] is not None]
    named = {
        says: [f"{one['name']} ({one['kind']})" for one in judged if one["says"] == says]
        for says in ("worse", "better")
    }
    if not any(named.values()):
        return f"None of the {len(judged)} slices differs by more than noise."
    parts = [
        f"{says.capitalize()} in {len(names)} of {len(judged)} slices: {', '.join(names)}."
        for says, names in named.items()
        if names
    ]
    return " ".join(parts)
