"""The typed mirror of params.yaml, in the same order, and the one way to read it.

No field has a default: a default is an input that DVC cannot see.  `load` checks the whole file
and reports every fault at once, each with its line, rule and remedy.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import fnmatch
import hashlib
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.reader import ReaderError

from tasks.dataset import places

PROMPT_METHODS = ("prompt_tuning", "prefix_tuning")
"""Values of sft.method that no weight of the model takes up."""
LINEAR_ALONE = ("adalora", "ia3")
"""Values of sft.method that PEFT has for linear layers, not for embeddings."""

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Section(BaseModel):
    """A mapping in params.yaml: unknown keys refused, nothing coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Compute(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    threads: Count
    instruction_set: Literal["avx2", "native"]
    dtype: Literal["auto", "float32", "bfloat16"]
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"]
    gradient_checkpointing: Literal["auto"] | bool
    pass_tokens: Literal["auto"] | Count | None


class Optimiser(Section):
    """AdamW with a linear warm-up and a cosine down to zero."""

    batch_size: Count
    gradient_accumulation: Count
    learning_rate: Positive
    warmup_share: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NotNegative
    adam_beta2: Annotated[float, Field(gt=0, lt=1)]
    max_grad_norm: Positive


class Pretraining(Optimiser):
    steps: Annotated[int, Field(ge=0)]


class Scratch(Section):
    text: Annotated[list[str], Field(min_length=1)]
    vocab_size: Annotated[int, Field(ge=300)]
    hidden_size: Annotated[int, Field(ge=64, multiple_of=64)]
    layers: Count
    heads: Count
    intermediate_size: Annotated[int, Field(ge=64, multiple_of=64)]
    context: Annotated[int, Field(ge=32)]
    pretraining: Pretraining


class Hub(Section):
    repo: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")] | None
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None


class Local(Section):
    path: str | None


class Gguf(Section):
    path: str | None
    package: str | None


class Base(Section):
    source: Literal["scratch", "hub", "local", "gguf"]
    scratch: Scratch
    hub: Hub
    local: Local
    gguf: Gguf
    chat_template: str | None


class ReadAs(Section):
    container: Literal["jsonl", "json", "csv", "tsv", "parquet", "arrow"] | None
    format: (
        Literal["messages", "sharegpt", "instruction", "completion", "preference", "text"] | None
    )


class Source(Section):
    file: str
    read_as: ReadAs | None
    kind: Literal["chat", "preference", "text"]
    role: Literal["train", "general", "test", "regression", "benchmark"]
    map: dict[str, str | dict[str, Any]] | None
    columns: list[str] | None


class Ingest(Section):
    sources: Annotated[list[Source], Field(min_length=1)]
    max_line_bytes: Count
    hidden_characters: Literal["reject", "allow"]
    max_reject_share: Share


PrivacyAction = Literal["allow", "redact", "reject"]
Range = Annotated[list[int], Field(min_length=2, max_length=2)]


class Privacy(Section):
    email: PrivacyAction
    phone: PrivacyAction
    iban: PrivacyAction
    card: PrivacyAction
    national_id: PrivacyAction
    ip: PrivacyAction
    secret: PrivacyAction


class MinScore(Section):
    consistency: Share
    contradictions: Share
    class_balance: Share
    distinct_words: Share
    clusters: Share
    length: Share


class Validate(Section):
    answer_schema: dict[str, Any] | None
    min_rows: Annotated[int, Field(ge=0)]
    prompt_chars: Range
    answer_chars: Range
    max_class_share: Share
    min_score: MinScore
    contradictions: Literal["reject", "allow"]
    privacy: Privacy
    max_reject_share: Share


class NearDuplicates(Section):
    threshold: Annotated[float, Field(gt=0, le=1)]
    shingle_words: Count
    permutations: Annotated[int, Field(ge=16)]


class Split(Section):
    strategy: Literal["time", "group", "stratified", "random"]
    test_from: Day | None
    test_share: Annotated[float, Field(gt=0, lt=1)] | None
    validation_share: Annotated[float, Field(gt=0, lt=1)]
    stratify_by: str | None
    by_source: dict[str, Annotated[float, Field(ge=0, lt=1)]]


class Decontamination(Section):
    ngram_words: Annotated[int, Field(ge=2)]
    overlap: Annotated[float, Field(gt=0, le=1)]
    action: Literal["reject", "report"]


class Mix(Section):
    general_share: Annotated[float, Field(ge=0, lt=1)]
    weights: dict[str, NotNegative]


class Format(Section):
    max_reject_share: Share
    max_tokens: Annotated[int, Field(ge=16)]
    near_duplicates: NearDuplicates
    split: Split
    hard_test_share: Annotated[float, Field(gt=0, le=1)]
    decontamination: Decontamination
    mix: Mix


class Training(Optimiser):
    """What the three training stages share."""

    enabled: bool
    epochs: Count


class Validated(Training):
    """Ends with the weights of the lowest validation loss."""

    validations: Count
    patience: Count | None


Targets = Literal["all-linear"] | Annotated[list[str], Field(min_length=1)]


class CptLora(Section):
    r: Count
    alpha: Count
    target_modules: Targets


class Cpt(Validated):
    method: Literal["full", "lora"]
    lora: CptLora
    block_tokens: Annotated[int, Field(ge=16)]
    validation_share: Annotated[float, Field(ge=0, lt=1)]


class AdaLora(Section):
    initial_ratio: Annotated[float, Field(gt=1)]
    warmup_share: Annotated[float, Field(ge=0, lt=1)]
    final_share: Annotated[float, Field(ge=0, lt=1)]
    orthogonality: NotNegative


class Sft(Validated):
    method: Literal[
        "full",
        "lora",
        "qlora",
        "dora",
        "rslora",
        "lora_plus",
        "adalora",
        "ia3",
        "prompt_tuning",
        "prefix_tuning",
    ]
    lora_r: Count
    lora_alpha: Count
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Targets
    lora_plus_ratio: Annotated[float, Field(ge=1)]
    adalora: AdaLora
    virtual_tokens: Count


DpoLoss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]
"""The names of TRL 1.16 (`DPOConfig.loss_type`)."""

WHOLE_BATCH = ("aot", "aot_unpaired", "sft")
"""Losses that are no mean over pairs: they sort a batch, or count its tokens.  It stays one pass."""

SMOOTHED = ("exo_pair", "robust", "aot", "aot_unpaired")
"""Losses that read dpo.label_smoothing."""


class Dpo(Validated):
    loss: DpoLoss
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)]
    beta: Positive


class Merge(Section):
    onnx: bool
    onnx_precision: Literal["fp32", "int4"]
    max_kl: Positive


class Retrieval(Section):
    rows: Annotated[int, Field(ge=0)]
    from_: Annotated[Literal["train", "corpus"], Field(alias="from")]


class LmEval(Section):
    tasks: list[Annotated[str, Field(min_length=1)]]
    limit: Count


class Against(Section):
    """How the final candidate must stand against another, by the primary metric on the test."""

    require: Literal["better", "not_worse"]
    margin: Share


class Forgetting(Section):
    max_perplexity_ratio: Positive | None
    max_following_drop: Share | None


class Gates(Section):
    metrics: dict[str, float]
    simpler: Against | None
    champion: Against | None
    forgetting: Forgetting


class Evaluate(Section):
    task: Literal["auto", "classification", "structured", "generation"]
    primary: str
    engine: Literal["onnx", "genai", "transformers", "vllm"]
    max_new_tokens: Count
    confidence: Annotated[float, Field(ge=0.5, le=0.999)]
    regression_rows: Count
    prompts: Annotated[list[str | None], Field(min_length=1)]
    few_shot: Annotated[int, Field(ge=0)]
    retrieval: Retrieval
    classical: bool
    champion: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    embedding_model: str | None
    lm_eval: LmEval
    cost_per_hour: Positive | None
    gates: Gates


class Register(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    require_clean: bool
    max_changes_bytes: Count


class Judge(Section):
    endpoint: Annotated[str, Field(pattern=r"^https?://[^\s@?#]+$")] | None
    model: str | None
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None
    against: Literal[
        "simpler", "base", "base_few_shot", "base_retrieval", "classical", "champion", "cpt", "sft"
    ]
    pairs: Count
    rubric: Annotated[str, Field(min_length=1)]
    max_tokens: Count
    timeout_seconds: Positive
    retries: Annotated[int, Field(ge=0, le=10)]
    concurrency: Annotated[int, Field(ge=1, le=64)]

    @property
    def rubric_sha256(self) -> str:
        return hashlib.sha256(self.rubric.encode()).hexdigest()


class Promote(Section):
    reproduced: Literal["identical", "equivalent"]
    votes: Annotated[int, Field(ge=0)]
    min_win_rate: Share | None
    judge_min_win_rate: Share | None
    max_latency_p95_seconds: Positive | None


class Incoming(Section):
    file: str
    like: str


class DriftEffects(Section):
    """The least effect of each test of the drift check."""

    words: Annotated[float, Field(ge=0.5, le=1)]
    lengths: Share
    rare_words: Share
    classes: Share
    languages: Share
    answers: Share
    rejected: Share
    duplicates: Share


class DriftQuality(Section):
    rows: Annotated[int, Field(ge=0)]
    drop: Share


class Drift(Section):
    incoming: Annotated[list[Incoming], Field(min_length=1)]
    settle_seconds: NotNegative
    max_bytes: Count
    min_rows: Annotated[int, Field(ge=50)]
    sample_rows: Annotated[int, Field(ge=100)]
    significance: Annotated[float, Field(gt=0, le=0.2)]
    permutations: Annotated[int, Field(ge=99)]
    effects: DriftEffects
    quality: DriftQuality


class Retraining(Section):
    cooldown_hours: NotNegative
    per_week: Annotated[int, Field(ge=0)]
    test_share: Annotated[float, Field(ge=0, lt=1)]
    notify: Annotated[str, Field(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")] | None


class Params(Section):
    compute: Compute
    base: Base
    ingest: Ingest
    validate_: Annotated[Validate, Field(alias="validate")]
    format: Format
    cpt: Cpt
    sft: Sft
    dpo: Dpo
    merge: Merge
    evaluate: Evaluate
    register_: Annotated[Register, Field(alias="register")]
    judge: Judge
    promote: Promote
    drift: Drift
    retraining: Retraining

    def each(self) -> dict[str, Section]:
        """Every section, by its name in params.yaml."""
        fields = type(self).model_fields.items()
        return {info.alias or name: getattr(self, name) for name, info in fields}


@dataclass(frozen=True)
class Problem:
    """One fault of a params file: where, what value, which rule, how to mend it."""

    file: str
    line: int
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: {self.text}"


class ParamsError(Exception):
    """All faults of a params file. `str()` is one line a fault."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.line, problem.key))
        faults = "1 fault" if len(problems) == 1 else f"{len(problems)} faults"
        super().__init__("\n".join([f"{faults} in {problems[0].file}:", *map(str, self.problems)]))


def load(path: Path) -> Params:
    """Read and check a params file.

    Raises:
        ParamsError: with every fault of the file.
    """
    try:
        document = YAML().load(path.read_text(encoding="utf-8"))
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        text = "does not exist; restore it with `git checkout params.yaml`"
        raise ParamsError([Problem(path.name, 1, "file", text)]) from None
    except UnicodeDecodeError as error:
        text = f"byte {error.start} is not UTF-8; save the file as UTF-8"
        raise ParamsError([Problem(path.name, 1, "file", text)]) from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        text = f"not valid YAML: {error.problem}; compare with `git show HEAD:params.yaml`"
        raise ParamsError([Problem(path.name, line, "file", text)]) from None
    except ReaderError as error:
        line = path.read_text(encoding="utf-8").count("\n", 0, error.position) + 1
        text = f"holds the control character {error.character:#04x}; delete it"
        raise ParamsError([Problem(path.name, line, "file", text)]) from None
    if not isinstance(values, dict):
        text = "must be a mapping of sections; restore it with `git checkout params.yaml`"
        raise ParamsError([Problem(path.name, 1, "file", text)])

    def problem(loc: tuple[int | str, ...], text: str) -> Problem:
        return Problem(path.name, _line(document, loc), _dotted(loc), text)

    problems = [problem(loc, text) for loc, text in _cross_checks(values)]
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        problems += [problem(*fault) for fault in _faults(error)]
        raise ParamsError(problems) from None
    if problems:
        raise ParamsError(problems)
    return params


Loc = tuple[int | str, ...]


def problem_at(path: Path, loc: Loc, text: str) -> Problem:
    """A fault at a place of a YAML file, found outside the file's own rules."""
    document = YAML().load(path.read_text(encoding="utf-8"))
    return Problem(path.name, _line(document, loc), _dotted(loc), text)


def _faults(error: ValidationError) -> Iterator[tuple[Loc, str]]:
    """pydantic's errors as (place, sentence), one for each place.

    A union reports a fault for each of its members; they share a place and only the first is told.
    """
    seen: set[Loc] = set()
    for item in error.errors(include_url=False):
        loc = _in_file(item["loc"])
        if loc in seen:
            continue
        seen.add(loc)
        yield loc, _sentence(item["type"], item["msg"], loc, item["input"])


def _in_file(loc: Loc) -> Loc:
    """Drop the union members that pydantic adds to a location; keep what stands in the file."""
    kept: list[int | str] = []
    annotation: Any = Params
    for part in loc:
        step = _child(annotation, part)
        if step is _ABSENT:
            if _is_section(annotation):
                kept.append(part)  # an unknown key: nothing lies below it
            break
        kept.append(part)
        annotation = step
    return tuple(kept)


_ABSENT = object()


def is_section(loc: Loc) -> bool:
    """Whether a mapping of known keys stands at a place of the file; below any other value keys are
    free."""
    annotation: Any = Params
    for part in loc:
        annotation = _child(annotation, part)
    return annotation is not _ABSENT and _is_section(annotation)


def _is_section(annotation: Any) -> bool:
    """Whether a mapping of known keys stands there, or may be left out with null."""
    members = [part for part in get_args(annotation) or [annotation] if part is not type(None)]
    return all(isinstance(part, type) and issubclass(part, BaseModel) for part in members)


def _child(annotation: Any, part: int | str) -> Any:
    """The type below `annotation` at `part`, or _ABSENT when `part` is no place in the file."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _child(get_args(annotation)[0], part)
    if origin in (Union, types.UnionType):
        found = (_child(member, part) for member in get_args(annotation))
        return next((child for child in found if child is not _ABSENT), _ABSENT)
    if origin is list and isinstance(part, int):
        return get_args(annotation)[0]
    if origin is dict and isinstance(part, str):
        return get_args(annotation)[1]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, info in annotation.model_fields.items():
            if part in (name, info.alias):
                return info.annotation
    return _ABSENT


def _sentence(kind: str, message: str, loc: Loc, value: Any) -> str:
    if kind == "extra_forbidden":
        known = _keys_beside(loc)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else f"remove it; known: {', '.join(known)}"
        return f"unknown key; {remedy}"
    if kind == "missing":
        return "missing; add it (`git show HEAD:params.yaml` has the shipped values)"
    rule = message.replace("Input should be ", "must be ").replace("Value should", "must")
    rule = rule.replace("valid ", "").replace("a integer", "a whole number")
    if kind == "string_pattern_mismatch":
        rule = _PATTERNS.get(str(loc[-1]), rule)
    if kind == "model_type":
        rule = "must be a mapping of keys to values"
    if kind == "float_type" and isinstance(value, str):
        rule += " (write 2.0e-4, with a point and without quotes)"
    if kind == "string_type" and isinstance(value, datetime.date):
        value, rule = str(value), rule + " (put it in quotes)"
    return f"is {value!r}, {rule}"


_PATTERNS = {
    "revision": "must be the 40 hex digits of a commit; a branch or tag can move. "
    "Find it under Files and versions > History of the model's page",
    "repo": "must be owner/name",
    "endpoint": "must be http:// or https:// with host and path, as in http://127.0.0.1:8000/v1, "
    "without a name or key; judge.api_key_env names the variable that holds the key",
    "api_key_env": "must be the name of an environment variable, as in OPENAI_API_KEY",
    "test_from": 'must be a day in quotes, as in "2026-08-31"',
    "notify": "must be the type and the name of a Prefect block, as in slack-webhook/team",
    "name": "must begin with a letter or digit and hold letters, digits, . _ - alone",
    "champion": "must be the 64 hex digits of a version's identity; "
    "the version's tag `identity` in MLflow has it",
}


def _keys_beside(loc: Loc) -> list[str]:
    annotation: Any = Params
    for part in loc[:-1]:
        annotation = _child(annotation, part)
    while not isinstance(annotation, type):
        annotation = next(arg for arg in get_args(annotation) if arg is not type(None))
    fields: Mapping[str, Any] = getattr(annotation, "model_fields", {})
    return [info.alias or name for name, info in fields.items()]


def _cross_checks(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Rules between keys, on the raw file, so that they are reported beside faults of type."""
    for check in _CHECKS:
        yield from _tolerant(check(values))


def _tolerant(found: Iterator[tuple[Loc, str]]) -> Iterator[tuple[Loc, str]]:
    """What a check finds before it meets a part of the wrong shape, of which pydantic speaks."""
    with contextlib.suppress(
        KeyError, TypeError, AttributeError, ValueError, IndexError, ZeroDivisionError
    ):
        yield from found


def _check_base(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    base = values["base"]
    needed = {"hub": ["repo", "revision"], "local": ["path"]}.get(base["source"], [])
    for key in needed:
        if base[base["source"]][key] is None:
            rule = _PATTERNS["revision"] if key == "revision" else "name what to load"
            yield ("base", base["source"], key), f"is null, but source is {base['source']}; {rule}"
    if base["source"] == "gguf" and (base["gguf"]["path"] is None) == (
        base["gguf"]["package"] is None
    ):
        yield ("base", "gguf"), "needs either path or package, not both; set the other to null"
    scratch = base["scratch"]
    if (
        scratch["hidden_size"] % scratch["heads"]
        or (scratch["hidden_size"] // scratch["heads"]) % 2
    ):
        text = f"is {scratch['heads']}, but must divide hidden_size into an even head width"
        yield ("base", "scratch", "heads"), text


def _check_sources(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    for index, source in enumerate(values["ingest"]["sources"]):
        loc = ("ingest", "sources", index)
        yield from _tolerant(_check_role((*loc, "role"), source))
        yield from _tolerant(_check_format((*loc, "read_as", "format"), source))
        yield from _tolerant(_check_map((*loc, "map"), source))
    named = [_named(source) for source in values["ingest"]["sources"]]
    for index, text in places.wrong_names(named):
        yield ("ingest", "sources", index, "file"), text
    for index, name in enumerate(values["base"]["scratch"]["text"]):
        yield from _tolerant(_check_text(("base", "scratch", "text", index), name))


def _named(source: Any) -> places.Named:
    """A source's file and container; what has a wrong type is the schema's to tell."""
    try:
        container = (source["read_as"] or {}).get("container")
        known = container if container in places.CONTAINERS else None
        if isinstance(source["file"], str):
            return source["file"], known
    except (KeyError, TypeError, AttributeError):
        pass
    return None, None


def _check_text(loc: Loc, name: str) -> Iterator[tuple[Loc, str]]:
    """The text of the scratch model is read before anything is ingested: plain files alone."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        yield loc, f"is {name!r}, which leads out of the raw data; put the file there"
    elif path.suffix not in (".jsonl", ".csv"):
        yield loc, f"is {name!r}, but must end in .jsonl or .csv; convert the file"


def _check_role(loc: Loc, source: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    role, kind = source["role"], source["kind"]
    if role in ("general", "test", "regression") and kind != "chat":
        yield loc, f"is {role!r}, which kind {kind} cannot be, only chat; say train or benchmark"


def _check_format(loc: Loc, source: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    if source["read_as"] is None or source["read_as"]["format"] is None:
        return
    format, kind = source["read_as"]["format"], source["kind"]
    if source["map"] is not None:
        yield loc, f"is {format!r}, but there is a map, which says more; set one to null"
    elif format not in _FORMATS[kind]:
        yield loc, f"is {format!r}, which is no {kind}; known: {', '.join(_FORMATS[kind])}"


_FORMATS = {
    "chat": ("messages", "sharegpt", "instruction", "completion"),
    "preference": ("preference",),
    "text": ("text",),
}


def _check_map(loc: Loc, source: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    if source["map"] is None:
        return
    needed, allowed = _MAP_KEYS[source["kind"]]
    for key in sorted(needed - set(source["map"])):
        yield loc, f"lacks {key}, which kind {source['kind']} needs; add it"
    for key in sorted(set(source["map"]) - needed - allowed):
        known = ", ".join(sorted(needed | allowed))
        yield (*loc, key), f"is no part of a {source['kind']} record; known: {known}"
    if source["columns"] is not None:
        for key, template in source["map"].items():
            for column in _placeholders(template):
                if column not in source["columns"]:
                    near = difflib.get_close_matches(column, source["columns"], n=1, cutoff=0.5)
                    remedy = f"did you mean {{{near[0]}}}?" if near else "add it to columns"
                    yield (*loc, key), f"reads {{{column}}}, which is not in columns; {remedy}"


def _placeholders(template: Any) -> Iterator[str]:
    """The columns that a template of `map` names, however deep it is."""
    if isinstance(template, Mapping):
        for part in template.values():
            yield from _placeholders(part)
    elif isinstance(template, str):
        yield from (name for _, name, _, _ in Formatter().parse(template) if name)


_ABOUT = {"id", "time", "group"}
_MAP_KEYS = {
    "chat": ({"user", "assistant"}, {"system", *_ABOUT}),
    "preference": ({"user", "chosen", "rejected"}, {"system", *_ABOUT}),
    "text": ({"text"}, _ABOUT),
}


def _check_split(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    split = values["format"]["split"]
    loc = ("format", "split")
    published = any(source["role"] == "test" for source in values["ingest"]["sources"])
    ways = ["test_from", "test_share"] if split["strategy"] == "time" else ["test_share"]
    if not published and all(split[way] is None for way in ways):
        also = " and so is test_share" if len(ways) > 1 else ""
        text = f"is null{also}, but strategy is {split['strategy']} and no source has role test"
        yield (*loc, ways[0]), f"{text}; give a value"
    fields = list((values["validate"]["answer_schema"] or {}).get("properties", {}))
    if split["stratify_by"] is not None and fields and split["stratify_by"] not in fields:
        near = difflib.get_close_matches(str(split["stratify_by"]), fields, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(fields)}"
        text = f"is {split['stratify_by']!r}, no field of validate.answer_schema; {remedy}"
        yield (*loc, "stratify_by"), text
    if (split["test_share"] or 0) + split["validation_share"] >= 1:
        text = f"is {split['validation_share']}, which with test_share leaves nothing to train on"
        yield (*loc, "validation_share"), f"{text}; lower one of them"


def _check_strata(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """An answer that is a mapping says which fields there are."""
    field = values["format"]["split"]["stratify_by"]
    answers = [
        (source["map"] or {}).get("assistant")
        for source in values["ingest"]["sources"]
        if (source["kind"], source["role"]) == ("chat", "train")
    ]
    mapped = [answer for answer in answers if isinstance(answer, dict)]
    declared = (values["validate"]["answer_schema"] or {}).get("properties", {})
    if field is None or not mapped or len(mapped) < len(answers):
        return
    if declared and field not in declared:  # which the check of the split tells
        return
    fields = list(dict.fromkeys(name for answer in mapped for name in answer))
    if field not in fields:
        text = f"is {field!r}, a field of no answer that a map makes; known: {', '.join(fields)}"
        yield ("format", "split", "stratify_by"), text


def _check_mix(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    mix, sources = values["format"]["mix"], values["ingest"]["sources"]
    loc = ("format", "mix")
    if mix["general_share"] and all(source["role"] != "general" for source in sources):
        text = f"is {mix['general_share']}, but no source has role general; add one, or say 0.0"
        yield (*loc, "general_share"), text
    for name in mix["weights"]:
        role, problem = _role(name, sources)
        if problem:
            yield (*loc, "weights", name), problem
        elif role == "general":
            text = "has role general, of which general_share takes what is needed; remove it"
            yield (*loc, "weights", name), text
        elif role != "train":
            yield (*loc, "weights", name), f"has role {role}, which is not trained on; remove it"


def _check_by_source(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    for name in values["format"]["split"]["by_source"]:
        role, problem = _role(name, values["ingest"]["sources"])
        if role not in (None, "train"):
            problem = f"has role {role}, and only role train is split; remove it"
        if problem:
            yield ("format", "split", "by_source", name), problem


def _role(name: str, sources: list[Mapping[str, Any]]) -> tuple[str | None, str | None]:
    """The role of the source that a setting names, or why there is none."""
    roles = {source["file"]: source["role"] for source in sources}
    named = [role for file, role in roles.items() if fnmatch.fnmatchcase(name, file)]
    role = roles.get(name, next(iter(named), None))
    if role is not None:
        return role, None
    near = difflib.get_close_matches(str(name), roles, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(roles)}"
    return None, f"is no file of ingest.sources; {remedy}"


def _check_day(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    day = values["format"]["split"]["test_from"]
    if isinstance(day, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", day):
        try:
            datetime.date.fromisoformat(day)
        except ValueError:
            yield ("format", "split", "test_from"), f"is {day!r}, a day that no calendar has"


_PAIRED = {
    "classification": ["accuracy", "exact_match"],
    "structured": ["exact_match", "json_valid", "schema_valid"],
    "generation": ["rouge_l", "embedding_similarity", "exact_match"],
}
"""Metrics that give each row a number, by task, beside a field's accuracy."""
_OF_THE_WHOLE = {
    "classification": [f"{mean}_{part}" for mean in ("macro", "micro")
                       for part in ("precision", "recall", "f1")],
    "structured": [],
    "generation": ["bleu", "chrf"],
}  # fmt: skip
_NO_SHARE = ("perplexity", "embedding_similarity")


def _metrics(values: Mapping[str, Any], whole: bool) -> tuple[list[str], bool]:
    """The metrics that this data can have, those of all rows at once among them or not, and whether
    any field may have an accuracy, since no schema says which fields there are."""
    evaluate, schema = values["evaluate"], values["validate"]["answer_schema"]
    tasks = [evaluate["task"]] if evaluate["task"] in _PAIRED else list(_PAIRED)
    known = dict.fromkeys(metric for task in tasks for metric in _PAIRED[task])
    if whole:
        known |= dict.fromkeys(metric for task in tasks for metric in _OF_THE_WHOLE[task])
    fields = (schema or {}).get("properties", {}) if "structured" in tasks else {}
    known |= dict.fromkeys(f"{name}_accuracy" for name in fields)
    if schema is None:
        known.pop("schema_valid", None)
    if evaluate["embedding_model"] is None:
        known.pop("embedding_similarity", None)
    if whole:
        known |= dict.fromkeys(["perplexity", "contaminated_share"])
    return list(known), not fields and "structured" in tasks


def _unknown_metric(name: str, values: Mapping[str, Any], whole: bool) -> str | None:
    """Why a name is no metric of this data, with the one that was meant."""
    known, any_field = _metrics(values, whole)
    if name in known or (any_field and name.endswith("_accuracy")):
        return None
    if not whole and name in _metrics(values, True)[0]:
        rows = f"known: {', '.join(known)}"
        return f"is a metric of all rows at once, and candidates are compared row by row; {rows}"
    if name == "embedding_similarity":
        return "needs evaluate.embedding_model; name the folder of a sentence encoder there"
    if name == "schema_valid":
        return "needs validate.answer_schema, and there is none; write one, or take json_valid"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    return f"is no metric of this data; {remedy}"


def _check_primary(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    primary = values["evaluate"]["primary"]
    if not isinstance(primary, str) or primary == "auto":
        return
    if problem := _unknown_metric(primary, values, whole=False):
        yield ("evaluate", "primary"), f"is {primary!r}, which {problem}"


def _check_gates(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    for name, limit in values["evaluate"]["gates"]["metrics"].items():
        loc = ("evaluate", "gates", "metrics", name)
        if problem := _unknown_metric(str(name), values, whole=True):
            yield loc, problem
        elif name not in _NO_SHARE and not 0 <= limit <= 1:
            yield loc, f"is {limit}, but a share lies between 0 and 1; write 0.99 for 99%"
        elif name == "perplexity" and limit < 1:
            yield (
                loc,
                f"is {limit}, and no model's perplexity is below 1; raise it, or drop the gate",
            )


def _check_margins(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    for other in ("simpler", "champion"):
        yield from _tolerant(_check_margin(other, values["evaluate"]["gates"][other]))


def _check_margin(other: str, gate: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    if gate["require"] == "better" and gate["margin"] > 0:
        text = f"is {gate['margin']}, but require is better, which has no margin; say 0.0, or not_worse"
        yield ("evaluate", "gates", other, "margin"), text


QUESTION = "{question}"
"""Where in a prompt of evaluate.prompts the question stands."""


def _check_prompts(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    prompts = values["evaluate"]["prompts"]
    for index, prompt in enumerate(prompts):
        loc = ("evaluate", "prompts", index)
        if isinstance(prompt, str) and QUESTION not in prompt:
            near = difflib.get_close_matches(QUESTION, re.findall(r"\{\w+\}", prompt), n=1)
            remedy = (
                f"write it for {near[0]}" if near else "add it, or say null for the bare question"
            )
            yield loc, f"has no {QUESTION}, where the question is to stand; {remedy}"
        elif prompt in prompts[:index]:
            yield loc, "stands above already; drop one"


def _check_engine(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    engine = values["evaluate"]["engine"]
    if engine in ("onnx", "genai") and values["merge"]["onnx"] is False:
        yield ("evaluate", "engine"), f"is {engine}, but merge.onnx is false; say transformers"


def _check_method(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    sft = values["sft"]
    method = sft["method"]
    if not sft["enabled"]:
        return
    embeddings = [name for name in EMBEDDINGS if name in sft["target_modules"]]
    if method in LINEAR_ALONE and embeddings:
        text = f"holds {embeddings[0]}, an embedding, and {method} adapts linear layers alone"
        yield ("sft", "target_modules"), f"{text}; take it out, or use lora"
    if method == "adalora":
        yield from _check_ranks(sft)
    if method in PROMPT_METHODS:
        why = f"sft.method is {method}, which no weight takes up"
        if values["merge"]["onnx"] is not False:
            yield ("merge", "onnx"), f"is true, but {why}, so ONNX cannot hold it; say false"
        if values["evaluate"]["engine"] != "transformers":
            engine = values["evaluate"]["engine"]
            yield ("evaluate", "engine"), f"is {engine}, but {why}; say transformers"


def _check_ranks(sft: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    settled = sft["adalora"]["warmup_share"] + sft["adalora"]["final_share"]
    if settled >= 1:
        text = (
            f"is {sft['adalora']['final_share']}, which with warmup_share leaves no step in which"
        )
        yield ("sft", "adalora", "final_share"), f"{text} ranks fall; lower one of them"
    if sft["patience"] is not None:
        text = f"is {sft['patience']}, but adalora settles its ranks by the planned number of steps"
        yield ("sft", "patience"), f"{text}; say null"


EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in")
"""What models call the table of their token embeddings."""


def _check_judge(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    judge = values["judge"]
    if judge["endpoint"] is not None and judge["model"] is None:
        text = "is null, but there is an endpoint; give the name that the model has there"
        yield ("judge", "model"), text
    if isinstance(judge["rubric"], str) and not judge["rubric"].strip():
        yield ("judge", "rubric"), "is empty; say what makes one answer better than another"


def _check_opponent(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    judge, evaluate = values["judge"], values["evaluate"]
    sft, dpo = values["sft"]["enabled"], values["dpo"]["enabled"]
    lacks = {
        "base_few_shot": evaluate["few_shot"] == 0 and "evaluate.few_shot is 0",
        "base_retrieval": evaluate["retrieval"]["rows"] == 0 and "evaluate.retrieval.rows is 0",
        "classical": evaluate["classical"] is False and "evaluate.classical is false",
        # people are asked about any version, and only the judge that is switched on is asked for sure
        "champion": (evaluate["champion"], judge["endpoint"] is None) == (None, False)
        and "evaluate.champion is null",
        "cpt": values["cpt"]["enabled"] is False and "cpt.enabled is false",
        "sft": (sft is False and "sft.enabled is false")
        or (dpo is False and "dpo.enabled is false, so that sft is the final candidate itself"),
    }
    if why := lacks.get(judge["against"]):
        yield ("judge", "against"), f"is {judge['against']}, but {why}; switch it on, or say base"


def _check_ranges(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    for key in ("prompt_chars", "answer_chars"):
        yield from _tolerant(_check_range(("validate", key), values["validate"][key]))


def _check_range(loc: Loc, bounds: list[int]) -> Iterator[tuple[Loc, str]]:
    low, high = bounds
    if low > high:
        yield loc, f"is [{low}, {high}], shortest first; swap them"


def _check_stages(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    if values["dpo"]["enabled"] and not values["sft"]["enabled"]:
        text = "is true, but sft.enabled is false; DPO continues the SFT adapter: switch both"
        yield ("dpo", "enabled"), text
    kinds = [source["kind"] for source in values["ingest"]["sources"] if source["role"] == "train"]
    for stage, kind in (("cpt", "text"), ("sft", "chat"), ("dpo", "preference")):
        if values[stage]["enabled"] and kind not in kinds:
            text = f"is true, but no source in ingest.sources has kind {kind}; add one or say false"
            yield (stage, "enabled"), text


def _check_smoothing(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    loss, smoothing = values["dpo"]["loss"], values["dpo"]["label_smoothing"]
    loc = ("dpo", "label_smoothing")
    if smoothing and loss not in SMOOTHED:
        yield loc, f"is {smoothing}, but dpo.loss {loss} has none; write 0.0"
    if loss == "exo_pair" and smoothing == 0:
        yield loc, "is 0.0, but dpo.loss exo_pair takes its logarithm; write 0.001 or more"


def _check_passes(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    budget, loss = values["compute"]["pass_tokens"], values["dpo"]["loss"]
    if isinstance(budget, int) and values["dpo"]["enabled"] and loss in WHOLE_BATCH:
        text = f"is {budget}, but dpo.loss {loss} compares all pairs of a batch; say auto or null"
        yield ("compute", "pass_tokens"), text
    prefix = values["sft"]["enabled"] and values["sft"]["method"] == "prefix_tuning"
    if prefix and values["compute"]["gradient_checkpointing"] is True:
        text = "is true, but sft.method prefix_tuning is a cache, which that would drop; say auto"
        yield ("compute", "gradient_checkpointing"), text


def _check_incoming(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """Whether there is a source that an entry is like is asked when something has arrived: who trains
    on other data need not care."""
    named = [(entry["file"], None) for entry in values["drift"]["incoming"]]
    for index, text in places.wrong_names(named):
        yield ("drift", "incoming", index, "file"), text


def _check_permutations(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    """A permutation test has no p-value below one over the permutations."""
    drift = values["drift"]
    likes = len({entry["like"] for entry in drift["incoming"]})
    least = math.ceil(DRIFT_ALARMS * likes / drift["significance"])
    if drift["permutations"] + 1 < least:
        text = f"is {drift['permutations']}, with which no p-value falls below drift.significance"
        yield ("drift", "permutations"), f"{text}; write {least - 1} or more"


DRIFT_ALARMS = 3
"""Among which drift.significance is shared out evenly: the classifier's, the descriptive tests', the
quality's."""


def _check_lengths(values: Mapping[str, Any]) -> Iterator[tuple[Loc, str]]:
    if values["base"]["source"] != "scratch":
        return
    context = values["base"]["scratch"]["context"]
    for loc in (("format", "max_tokens"), ("cpt", "block_tokens")):
        length = values[loc[0]][loc[1]]
        if length > context:
            yield loc, f"is {length}, more than base.scratch.context ({context}); lower it"
    sft, longest = values["sft"], values["format"]["max_tokens"]
    prompts = sft["enabled"] and sft["method"] in PROMPT_METHODS
    if prompts and context - sft["virtual_tokens"] < longest <= context:
        text = f"is {sft['virtual_tokens']}, which with format.max_tokens ({longest}) is more than"
        yield ("sft", "virtual_tokens"), f"{text} base.scratch.context ({context}); lower one"


_CHECKS: tuple[Callable[[Mapping[str, Any]], Iterator[tuple[Loc, str]]], ...] = (
    _check_base,
    _check_sources,
    _check_split,
    _check_strata,
    _check_mix,
    _check_by_source,
    _check_day,
    _check_primary,
    _check_gates,
    _check_margins,
    _check_prompts,
    _check_engine,
    _check_method,
    _check_passes,
    _check_judge,
    _check_opponent,
    _check_ranges,
    _check_stages,
    _check_smoothing,
    _check_lengths,
    _check_incoming,
    _check_permutations,
)


def _line(document: Any, loc: Loc) -> int:
    """The line of a key, or of the nearest mapping above it that the file has."""
    line = 0
    for part in loc:
        try:
            line = document.lc.key(part)[0] if isinstance(part, str) else document.lc.item(part)[0]
            document = document[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line + 1


def _dotted(loc: Loc) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".")
