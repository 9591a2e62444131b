"""Have a language model compare a version's answers, and keep what it said with the version."""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.lineage import git, hashes, opinions, store
from tasks.lineage.console import progress
from tasks.lineage.opinions import Subject
from tasks.lineage.stage import FAULT, STATE, StageError
from tasks.params import Judge
from tasks.voting import counting
from tasks.voting import judge as judging
from tasks.voting.counting import Agreement
from tasks.voting.judge import Reply, Result
from tasks.voting.pairs import Drawn

if TYPE_CHECKING:
    from mlflow import MlflowClient

Tell = Callable[[str], None]

KEPT = STATE / "judge"
"""Where replies wait until all are there, so that an interrupted run goes on where it stopped."""


LINE_EVERY_SECONDS = 10.0
"""Of progress, where no terminal shows a bar."""


class NotKept(StageError):
    """MLflow refuses to keep what was said."""

    exit_code = FAULT


@dataclass(frozen=True)
class Judgement:
    """What came of it."""

    final: str
    against: str
    result: Result
    fixed: opinions.Fixed
    people: Agreement

    @property
    def exit_code(self) -> int:
        return 0 if self.result.answer == "judged" else FAULT

    def lines(self) -> list[str]:
        fixed = {
            "yes": "the rubric was fixed before training",
            "no": "the rubric was NOT fixed before training: these weights are older than it",
            "unknown": "MLflow has no run that tells whether the rubric was fixed before training",
        }[self.fixed]
        told = [*self.result.lines(self.final, self.against), f"  {fixed}"]
        if self.people.rows:
            told.append(f"  agrees with people on {self.people}")
        return told


def judge(reference: str, settings: Judge, tell: Tell, root: Path = Path()) -> Judgement:
    """Ask the endpoint of `settings` about the version NAME@VERSION, and keep what it says.

    Rubric, model, number of pairs and opponent are those of the version's own params.yaml: they were
    chosen before its answers were known.  A version that names no model is judged by any, and no gate
    counts that.

    Raises:
        store.Unreachable: when MLflow does not answer.
        StageError: when the judge is off, its key is missing, it refuses to be asked, or the version
            cannot be compared.
    """
    api_key = _key(settings)
    client = store.connect()
    with opinions.subject(client, reference, root) as subject:
        if settings.rubric != subject.judge["rubric"]:
            raise StageError(
                f"judge.rubric in params.yaml is not the rubric of {reference} (sha256 "
                f"{settings.rubric_sha256[:12]}, its own {opinions.rubric_sha256(subject.judge)[:12]}); "
                "take the section judge from the version's params.yaml, or train a version with "
                "this one"
            )
        if subject.judge["model"] not in (None, settings.model):
            raise StageError(
                f"judge.model in params.yaml is {settings.model}, and {reference} is to be judged by "
                f"{subject.judge['model']}, as its own params.yaml says; name that one, or train a "
                "version with this one"
            )
        drawn = subject.draw(subject.judge["pairs"])
        tell(
            f"{reference}: {subject.final} against {drawn.against}, {len(drawn.pairs)} pairs of "
            f"{drawn.rows} test rows ({drawn.same} with the same answer), each in both orders, by "
            f"{settings.model}"
        )
        with _kept(subject, settings, drawn) as (known, keep):
            done, told = len(known), time.monotonic()
            with progress("judging", total=2 * len(drawn.pairs)) as advance:

                def on_reply(reply: Reply) -> None:
                    nonlocal done, told
                    done += 1
                    keep(reply)
                    advance(done, reply.better or "not judged")
                    if not sys.stderr.isatty() and time.monotonic() - told >= LINE_EVERY_SECONDS:
                        told = time.monotonic()
                        tell(f"  {done} of {2 * len(drawn.pairs)} requests")

                replies = judging.ask(
                    drawn.pairs, settings.rubric, settings, api_key, known, on_reply
                )
            judged = judging.collect(drawn.pairs, settings.rubric, replies)
            result = judging.count(judged, subject.confidence)
            scores = {one.row: one.score for one in judged if one.score is not None}
            people = _people(client, subject, scores, root)
            said = _document(subject, settings, drawn, judged, result, people)
            _keep(client, subject, said)
            if result.answer == "judged":
                _forget(subject, settings, drawn)
    return Judgement(subject.final, drawn.against, result, subject.fixed, people)


def _key(settings: Judge) -> str | None:
    if settings.endpoint is None:
        raise StageError(
            "judge.endpoint is null, so there is no judge; name an OpenAI-compatible address there, "
            "as in http://127.0.0.1:8000/v1, and the model in judge.model"
        )
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise StageError(
            f"judge.api_key_env names {settings.api_key_env}, which is not set; export the key under "
            "that name, or set judge.api_key_env to null if the endpoint wants none"
        )
    return key


def _people(
    client: MlflowClient, subject: Subject, judged: dict[str, float], root: Path
) -> Agreement:
    votes = opinions.read(client, subject.version, root).scores(subject.against)
    majority = {row: counting.majority(score) for row, score in counting.by_row(votes).items()}
    return counting.between(judged, majority)


def _document(
    subject: Subject,
    settings: Judge,
    drawn: Drawn,
    judged: list[judging.Judged],
    result: Result,
    people: Agreement,
) -> dict[str, Any]:
    counted = {key: value for key, value in result.document().items() if key != "pairs"}
    return {
        **counted,
        "final": drawn.final,
        "against": drawn.against,
        "test_rows": drawn.rows,
        "same_answer": drawn.same,
        "predictions_sha256": hashes.file_hash(subject.predictions, "sha256"),
        "endpoint": settings.endpoint,
        "model": settings.model,
        "max_tokens": settings.max_tokens,
        "rubric": settings.rubric,
        "rubric_sha256": settings.rubric_sha256,
        "instructions_sha256": judging.sha256(judging.INSTRUCTIONS),
        "fixed_before_training": subject.fixed,
        "people": asdict(people),
        "pairs": [
            {
                "row": one.row,
                "score": one.score,
                **{
                    order: asdict(reply)
                    for order, reply in zip(judging.ORDERS, one.replies, strict=True)
                },
            }
            for one in judged
        ],
    }


def _keep(client: MlflowClient, subject: Subject, said: dict[str, Any]) -> None:
    version = subject.version
    tags = {
        "judge": said["answer"],
        "judge.model": said["model"],
        "judge.against": said["against"],
        "judge.rubric_fixed_before_training": said["fixed_before_training"],
        "judge.win_rate": counting.shown(said["win_rate"]),
    }
    try:
        document = opinions.add(
            client, version, "judgement", said, git.author() or getpass.getuser()
        )
        for key, value in {**tags, "judge.at": document["at"]}.items():
            client.set_model_version_tag(version.name, str(version.version), key, value)
    except Exception as error:  # of any kind of store
        raise NotKept(
            f"the answer is {said['answer']}, but MLflow refuses to keep it: {store.brief(error)}; "
            "mend that, and run it again: what was answered is not asked anew"
        ) from error


def _file(subject: Subject, settings: Judge, drawn: Drawn) -> Path:
    """One for each version, judge and opponent."""
    asked = [
        subject.version.tags["identity"], drawn.against, settings.endpoint, settings.model,
        settings.rubric_sha256, settings.max_tokens,
    ]  # fmt: skip
    return KEPT / f"{hashes.sha256_json(asked)[:16]}.jsonl"


@contextmanager
def _kept(
    subject: Subject, settings: Judge, drawn: Drawn
) -> Iterator[tuple[dict[str, Reply], Callable[[Reply], None]]]:
    """The verdicts that an earlier run was given, and a way to add to them."""
    path = _file(subject, settings, drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    known: dict[str, Reply] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                reply = Reply(**json.loads(line))
            except (ValueError, TypeError):  # a line that a kill has cut
                continue
            known[reply.shown] = reply
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" if known else "")  # behind a line that was cut

        def keep(reply: Reply) -> None:
            if reply.better:
                file.write(json.dumps(asdict(reply)) + "\n")
                file.flush()

        yield known, keep


def _forget(subject: Subject, settings: Judge, drawn: Drawn) -> None:
    _file(subject, settings, drawn).unlink(missing_ok=True)
