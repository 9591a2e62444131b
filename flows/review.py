"""Blind review: write the page on which people compare a version's answers, and count their votes."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.lineage import evidence, git, hashes, opinions, seal, signing, store, whole
from tasks.lineage.opinions import Document, Opinions, Subject
from tasks.lineage.review import is_same_person
from tasks.lineage.signing import BadSignature
from tasks.lineage.stage import FAULT, STATE, StageError
from tasks.voting import counting, page
from tasks.voting.counting import Agreement, Tally
from tasks.voting.page import Refused, VotesFile
from tasks.voting.pairs import Drawn

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEYS = STATE / "reviews"
"""Where the keys of pages stay: which side is which."""


class NotKept(StageError):
    """MLflow refuses to keep something."""

    exit_code = FAULT


@dataclass(frozen=True)
class Exported:
    """A page that was written."""

    path: Path
    drawn: Drawn
    key: Path


def export(
    reference: str,
    against: str | None,
    rows: int,
    out: Path | None,
    folder: Path,
    root: Path = Path(),
) -> Exported:
    """Write a page on which the answers of the version NAME@VERSION are compared.

    Args:
        against: the other candidate; None for the one that the version names, whose votes are those
            that promotion counts.
        rows: of the test, at most.
        out: the file; None for one in `folder` that is named by the page's hash.

    Raises:
        store.Unreachable: when MLflow does not answer.
        StageError: when the version cannot be compared, or the file exists.
    """
    client = store.connect()
    with opinions.subject(client, reference, root) as subject:
        drawn = subject.draw(rows, against)
        made = page.export(subject.reference, drawn, subject.judge["rubric"])
        path = out or folder / f"review-{made.export[:8]}.html"
        if path.exists():
            raise StageError(f"{path} exists; choose another file with --out")
        said = {
            "export": made.export,
            "final": drawn.final,
            "against": drawn.against,
            "pairs": made.key,
            "test_rows": drawn.rows,
            "same_answer": drawn.same,
            "predictions_sha256": hashes.file_hash(subject.predictions, "sha256"),
            "rubric_sha256": opinions.rubric_sha256(subject.judge),
        }
        try:
            document = opinions.add(client, subject.version, "export", said, _me())
        except Exception as error:  # of any kind of store
            raise NotKept(
                f"MLflow refuses to keep which side is which ({store.brief(error)}), so nobody else "
                "could count the votes; mend that, and export again"
            ) from error
    key = KEYS / f"{made.export}.json"
    key.parent.mkdir(parents=True, exist_ok=True)
    whole.write_text(key, json.dumps(document, indent=1, ensure_ascii=False))
    try:
        path.write_text(made.html, encoding="utf-8")
    except OSError as error:
        raise StageError(f"{path}: {error.strerror}; choose another file with --out") from None
    return Exported(path, drawn, key)


@dataclass
class Imported:
    """What came of some files."""

    counted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """A line a file."""
    results: dict[tuple[str, str, str], tuple[Tally, Agreement]] = field(default_factory=dict)
    """By version, its final candidate and the other: all votes so far, and agreement with the judge."""

    def lines(self) -> list[str]:
        told = [*self.counted, *(f"refused: {line}" for line in self.refused)]
        for (version, final, against), (tally, judge) in self.results.items():
            told += [f"{version}:", *tally.lines(final, against)]
            if judge.rows:
                told.append(f"  the judge agrees with people on {judge}")
        return told


def import_(paths: Sequence[Path], root: Path = Path()) -> Imported:
    """Count votes files, and keep each with its version.  A file that does not count is told with
    its reason; the others are kept all the same.

    Raises:
        store.Unreachable: when MLflow does not answer.
        NotKept: when MLflow refuses to keep votes.
    """
    client = store.connect()
    done = Imported()
    touched: dict[str, Subject] = {}
    for path in paths:
        try:
            votes = page.read_votes(path)
            with opinions.subject(client, votes.version, root) as subject:
                known = opinions.read(client, subject.version, root)
                document = _count(client, subject, votes, known, root)
        except NotKept:
            raise
        except StageError as error:
            text = str(error)
            done.refused.append(text if text.startswith(path.name) else f"{path.name}: {text}")
            continue
        touched[subject.reference] = subject
        count = "1 vote" if len(votes.votes) == 1 else f"{len(votes.votes)} votes"
        done.counted.append(f"{path.name}: {count} of {votes.person}")
        done.results[(subject.reference, document["final"], document["against"])] = _EMPTY
    for subject in touched.values():
        _show(client, subject, done, root)
    return done


_EMPTY = (counting.tally({}, 0.95), Agreement(0, None, None))


def _count(
    client: MlflowClient, subject: Subject, votes: VotesFile, known: Opinions, root: Path
) -> Document:
    """Keep one person's votes with the version.

    Raises:
        Refused: when they do not count.
        NotKept: when MLflow refuses.
    """
    export_ = _key(subject, votes, known, root)
    scores = votes.scores(export_["pairs"])
    if is_same_person(votes.person, subject.author):
        raise Refused(
            f"{votes.name}: {votes.person} is the author of {subject.reference}; others must compare"
        )
    for before in known.votes:
        again = scores.keys() & before["scores"].keys()
        if (
            again
            and before["against"] == export_["against"]
            and is_same_person(votes.person, before["person"])
        ):
            raise Refused(
                f"{votes.name}: {before['person']} has voted on {len(again)} of these pairs already, "
                f"as imported at {before['at']}; a person counts once"
            )
    said = {
        "export": votes.export,
        "final": export_["final"],
        "against": export_["against"],
        "person": votes.person,
        "votes": votes.votes,
        "scores": scores,
    }
    try:
        return opinions.add(client, subject.version, "votes", said, _me())
    except Exception as error:  # of any kind of store
        raise NotKept(
            f"MLflow refuses to keep {votes.name}: {store.brief(error)}; mend that, and import it again"
        ) from error


def _key(subject: Subject, votes: VotesFile, known: Opinions, root: Path) -> Document:
    """Which side was which on the page that somebody voted on."""
    exports = [document for document in known.exports if document["export"] == votes.export]
    local = KEYS / f"{votes.export}.json"
    if not exports and votes.export.isalnum() and local.is_file():
        document = json.loads(local.read_text(encoding="utf-8"))
        try:
            seal.check("export", document, signing.trusted_keys(root))
        except BadSignature as error:
            raise Refused(f"{votes.name}: {local}: {error}") from None
        exports = [document]
    if not exports or exports[0]["identity"] != subject.version.tags["identity"]:
        raise Refused(
            f"{votes.name}: votes on another export, {votes.export[:12]}: none of the "
            f"{len(known.exports)} pages of {subject.reference} has that hash; was the page altered, or "
            "made elsewhere? Whoever exported it can import, or show its key in "
            f"{evidence.OPINIONS}/ of the version"
        )
    return exports[0]


def _show(client: MlflowClient, subject: Subject, done: Imported, root: Path) -> None:
    """Count all votes so far, and write those against the version's opponent on it, to be read."""
    known = opinions.read(client, subject.version, root)
    judge = known.judgements[-1] if known.judgements else None
    judged = {
        pair["row"]: pair["score"]
        for pair in (judge["pairs"] if judge else [])
        if pair["score"] is not None
    }
    for key in done.results:
        reference, _, against = key
        if reference != subject.reference:
            continue
        scores = known.scores(against)
        tally = counting.tally(scores, subject.confidence)
        majority = {row: counting.majority(mean) for row, mean in counting.by_row(scores).items()}
        same = judge is not None and judge["against"] == against
        done.results[key] = (tally, counting.between(judged if same else {}, majority))
        if against == subject.against:
            tags = {
                "votes": str(tally.votes),
                "votes.people": str(tally.people),
                "votes.against": against,
                "votes.win_rate": counting.shown(tally.win_rate),
            }
            for name, value in tags.items():
                client.set_model_version_tag(
                    subject.version.name, str(subject.version.version), name, value
                )


def _me() -> str:
    return git.author() or getpass.getuser()
