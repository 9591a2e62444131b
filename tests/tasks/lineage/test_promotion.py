"""From candidate to champion and back; what is refused, and what a kill or a hand leaves."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tasks.lineage import audit, evidence, promotion, review, seal, signing, store
from tasks.lineage.evidence import NotFound
from tasks.lineage.promotion import RegistryError
from tasks.lineage.review import Refused
from tasks.lineage.stage import GATE, GateError, StageError
from tasks.params import Promote

pytest_plugins = ("work_trees", "promotable")

NAME = "shipments"
AUTHOR = "ada@example.com"
ASKED = Promote(
    reproduced="identical",
    votes=0,
    min_win_rate=None,
    judge_min_win_rate=None,
    max_latency_p95_seconds=None,
)


def refused(team: Any, reference: str, **given: Any) -> list[str]:
    before = team.client.search_model_versions(f"name = '{NAME}'")
    with pytest.raises(Refused) as raised:
        team.promote(reference, **given)
    assert raised.value.exit_code == GATE
    assert str(raised.value).startswith(f"{reference} is not promoted: ")
    assert len(team.client.search_model_versions(f"name = '{NAME}'")) == len(before)
    return raised.value.objections


def uploaded(team: Any, reference: str, name: str) -> Path:
    (path,) = Path("mlruns").glob(f"*/{team.version(reference).run_id}/artifacts/{name}")
    return path


def test_a_candidate_becomes_the_champion_once(team) -> None:
    reference = team.candidate()
    done = team.promote(reference, comment="good on customs")
    assert (done.version, done.previous, done.made) == (1, None, True)
    assert done.line == f"{reference} is now the champion: version 1 of {NAME}"
    tags = team.version(f"{NAME}@1").tags
    entry = team.record().champion
    assert tags["promoted.by"] == "Grace <grace@example.com>"
    assert tags["promoted.comment"] == "good on customs"
    assert tags["promoted.at"] == team.now()
    assert tags["promoted.from"] == reference
    assert tags["promoted.evidence"] == entry.document["evidence"]["sha256"]
    assert tags[audit.ENTRY_TAG] == entry.hash
    assert tags["identity"] == team.version(reference).tags["identity"]
    assert team.client.get_registered_model(NAME).tags[audit.HEAD_TAG] == entry.hash
    again = team.promote(f"{NAME}-candidates@challenger")
    assert (again.version, again.made) == (1, False)
    assert again.line == f"{reference} was already the champion: version 1 of {NAME}"
    assert len(team.record().entries) == 1
    assert team.aliases() == {"champion": 1}
    assert team.judgement() == []


def test_back_and_forth(team) -> None:
    first, second = team.candidate(), team.candidate()
    team.promote(first)
    assert "before the champion changed" in refused(team, second)[0]
    team.reproduce(second)
    assert team.promote(second).previous == 1
    assert team.aliases() == {"champion": 2, "previous": 1}
    with pytest.raises(Refused, match="has no comment; say why with --comment"):
        team.rollback(comment=" ")
    back = team.rollback()
    assert (back.version, back.previous, back.made) == (1, None, True)
    assert team.aliases() == {"champion": 1}
    assert team.version(f"{NAME}@1").tags["promoted.comment"] == "it misroutes"
    with pytest.raises(Refused, match="there is no champion before this one; name one with --to"):
        team.rollback()
    with pytest.raises(Refused, match=r"version 7 was never champion; these were: 1, 2; --to"):
        team.rollback(7)
    assert not team.rollback(1).made
    assert team.rollback(2).previous == 1
    assert team.judgement() == []
    assert [entry.action for entry in team.record().entries] == [
        "promote", "promote", "rollback", "rollback"
    ]  # fmt: skip
    assert len(team.client.search_model_versions(f"name = '{NAME}'")) == 2


def test_the_champion_answers_and_only_while_its_evidence_holds(serving_team) -> None:
    import pandas as pd

    team = serving_team
    reference = team.candidate()
    with pytest.raises(GateError, match="it has none; `tunetrail promote shipments-candidates@VER"):
        promotion.load_champion(NAME)
    team.promote(reference)
    model = promotion.load_champion(NAME)
    answers = model.predict(pd.DataFrame({"message": ["the truck is running late"]}))
    assert list(answers.columns) == ["answer"]
    promotion.load_champion(NAME)  # nothing was written where it lies

    answer = uploaded(team, reference, f"{evidence.REPRODUCTIONS}/*.json")
    kept = answer.read_text()
    answer.write_text("[]")
    with pytest.raises(GateError, match=r"on which it was promoted is not in reproductions/"):
        promotion.load_champion(NAME)
    answer.write_text(kept)
    team.reproduce(reference, answer="different")  # on another machine, later
    promotion.load_champion(NAME)
    (weights,) = Path("mlruns").glob("*/models/*/artifacts/artifacts/onnx/model.onnx.data")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(GateError, match=r"verify files: changed: model/artifacts/onnx/model\.onnx"):
        promotion.load_champion(NAME)


class TestRefusals:
    def test_all_are_told_at_once(self, team) -> None:
        reference = team.candidate()
        team.reproduce(reference, answer="different", identity="0" * 64)
        uploaded(team, reference, "merged/config.json").write_text("{}")
        asked = ASKED.model_copy(update={"reproduced": "equivalent", "votes": 2})
        told = refused(team, reference, settings=asked, reviewer="")
        assert [line.partition(";")[0][:60] for line in told] == [
            "verify signature: signed for other files than lie here",
            "verify files: changed: merged/config.json",
            "verify statement: changed: merged/config.json",
            "verify provenance: changed: merged/config.json",
            "reproduce answered different, and promote.reproduced asks fo",
            f"reproduce compared another version, with identity {'0' * 10}",
            "gate votes/count: 0 votes of people against a candidate that",
            "nobody is named as reviewer",
        ]
        assert all(";" in line for line in told)

    def test_a_verdict_that_is_not_pass(self, team, monkeypatch) -> None:
        import work_trees

        monkeypatch.setitem(work_trees.VERDICT, "verdict", "fail")
        gate = {"passed": False, "limit": 0.95, "why": "0.9 is below 0.95"}
        monkeypatch.setitem(
            work_trees.VERDICT, "gates", [{**work_trees.VERDICT["gates"][0], **gate}]
        )
        Path("models/verdict.json").write_text(json.dumps(work_trees.VERDICT))
        told = refused(team, team.candidate())
        assert (
            "the verdict is fail (exact_match); improve data or params.yaml, and `tunetrail run`"
            in told
        )

    def test_a_verdict_tag_does_not_help(self, team) -> None:
        reference = team.candidate()
        team.client.set_model_version_tag(f"{NAME}-candidates", "1", "verdict", "better")
        (told,) = refused(team, reference)
        assert told.startswith("verify tags: verdict of the version's tags differ")

    def test_what_was_never_reproduced(self, team) -> None:
        reference = team.candidate()
        answer = uploaded(team, reference, f"{evidence.REPRODUCTIONS}/*.json")
        answer.unlink()
        for tag, value in (("reproduced", "identical"), ("reproduced.at", team.now())):
            team.client.set_model_version_tag(f"{NAME}-candidates", "1", tag, value)
        assert refused(team, reference) == [
            f"nobody has reproduced it; `tunetrail reproduce {reference}`"
        ]
        answer.write_text('{"a')
        assert refused(team, reference)[0].startswith("nobody has reproduced it")

    def test_answers_that_cannot_be_read_are_not_none(self, team, monkeypatch) -> None:
        reference = team.candidate()

        def down(*_: Any) -> None:
            raise OSError("connection reset")

        monkeypatch.setattr(MlflowClient, "list_artifacts", down)
        match = "reproductions/ of .* cannot be read: connection reset"
        with pytest.raises(StageError, match=match):
            review.reproductions(team.client, team.version(reference))

    def test_an_answer_that_someone_wrote_by_hand(self, team) -> None:
        reference = team.candidate()
        team.pass_time()
        team.keep(reference, team.answer(reference))
        (told,) = refused(team, reference)
        assert told.startswith("the answer of reproduce: nobody has signed it")
        team.work_as("stranger")
        team.reproduce(reference)
        team.work_as("reviewer")
        (told,) = refused(team, reference)
        assert "which is not trusted here" in told

    def test_an_answer_of_another_kind_is_none(self, team) -> None:
        """A seal on something else does not make it an answer."""
        reference = team.candidate()
        team.pass_time()  # so that it is the newest
        answer = team.answer(reference)
        team.keep(reference, seal.sealed(audit.PURPOSE, answer, signing.signing_key()))
        (told,) = refused(team, reference)
        assert "has signed; it was edited" in told

    def test_equivalent_is_enough_where_params_say_so(self, team) -> None:
        reference = team.candidate()
        team.reproduce(reference, answer="equivalent")
        (told,) = refused(team, reference)
        assert told.startswith("reproduce answered equivalent, and promote.reproduced asks for ide")
        asked = ASKED.model_copy(update={"reproduced": "equivalent"})
        assert team.promote(reference, settings=asked).made

    def test_the_author(self, team) -> None:
        reference = team.candidate()
        (told,) = refused(team, reference, reviewer="Ada L. <ADA+work@example.com>")
        assert told.endswith("is its author (ada@example.com); somebody else must review it")
        team.work_as("author")
        (told,) = refused(team, reference)
        assert "has signed it, so you are its author; somebody else must review it" in told

    def test_a_key_that_nobody_trusts(self, team, monkeypatch) -> None:
        reference = team.candidate()
        key = signing.signing_key()
        team.work_as("nobody")
        monkeypatch.setenv("TUNETRAIL_SIGNING_KEY", str(key))
        Path("trusted_keys/reviewer.pem").unlink()
        (told,) = refused(team, reference)
        assert told.endswith("put its public half into trusted_keys/")

    def test_what_is_no_candidate(self, team) -> None:
        reference = team.candidate()
        team.promote(reference)
        with pytest.raises(
            Refused, match=r"shipments holds no candidates; `tunetrail promote ship"
        ):
            team.promote(f"{NAME}@1")
        with pytest.raises(NotFound, match="MLflow has no shipments-candidates@9"):
            team.promote(f"{NAME}-candidates@9")

    def test_a_version_of_another_model_put_among_the_candidates(self, team) -> None:
        reference = team.candidate()
        other = f"{NAME}2-candidates"
        team.client.copy_model_version(f"models:/{reference.replace('@', '/')}", other)
        (told,) = refused(team, f"{other}@1")
        assert told.startswith(f"verify statement: it is about a version of {NAME}-candidates, ano")

    def test_a_comment_too_long_for_the_record(self, team) -> None:
        from tasks.lineage.stage import StageError

        with pytest.raises(StageError, match=r"the comment has 7000 characters.*shorten the comm"):
            team.promote(team.candidate(), comment="x" * 7000)

    def test_whoever_may_not_write(self, team, monkeypatch) -> None:
        from mlflow import MlflowClient
        from mlflow.exceptions import RestException

        def deny(*_: Any, **__: Any) -> None:
            raise RestException({"error_code": "PERMISSION_DENIED", "message": "Permission denied"})

        reference = team.candidate()
        monkeypatch.setattr(MlflowClient, "create_registered_model", deny)
        with pytest.raises(RegistryError, match="only reviewers may promote"):
            team.promote(reference)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("ada@example.com", "Ada <ADA@example.com>", True),
        ("ada@example.com", "ada+review@EXAMPLE.com", True),
        ("ada@example.com", "ada", True),
        ("Ada", " ada ", True),
        ("Ada  Lovelace", "ada lovelace", True),
        ("ada@example.com", "ada@example.org", False),
        ("ada@example.com", "Grace <grace@example.com>", False),
        ("root", "grace@example.com", False),
        ("ａda@example.com", "ada@example.com", True),
    ],
)
def test_who_is_the_same_person(one: str, other: str, same: bool) -> None:
    assert review.is_same_person(one, other) is review.is_same_person(other, one) is same


class TestByHand:
    def test_a_moved_alias(self, team) -> None:
        first, second = team.candidate(), team.candidate()
        team.promote(first)
        team.reproduce(second)
        team.promote(second)
        team.client.set_registered_model_alias(NAME, "champion", "1")
        told = (
            "the alias was moved by hand to version 1, and the audit record has promoted version 2; "
            f"`tunetrail promote {second}` puts it back"
        )
        assert team.judgement() == [f"{NAME}@champion: {told}"]
        with pytest.raises(GateError) as raised:
            promotion.load_champion(NAME)
        assert str(raised.value) == f"the champion of {NAME} is not loaded: {told}"
        assert not team.promote(second).made
        assert team.aliases() == {"champion": 2, "previous": 1}
        assert team.judgement() == []
        team.client.delete_registered_model_alias(NAME, "champion")
        team.client.set_registered_model_alias(NAME, "previous", "2")
        assert team.judgement() == [
            f"{NAME}@champion: the alias is missing, and the audit record has promoted version 2; "
            f"`tunetrail promote {second}` puts it back"
        ]
        team.client.set_registered_model_alias(NAME, "champion", "2")
        assert team.judgement() == [
            f"{NAME}@previous: it was moved by hand; `tunetrail promote {second}` puts it back"
        ]
        assert not team.promote(second).made
        assert team.aliases() == {"champion": 2, "previous": 1}

    def test_a_version_made_by_hand(self, team) -> None:
        reference = team.candidate()
        candidate = f"models:/{reference.replace('@', '/')}"
        team.client.copy_model_version(candidate, NAME)
        team.client.set_registered_model_alias(NAME, "champion", "1")
        (told,) = team.judgement()
        assert "moved by hand to version 1, and the audit record has promoted none" in told

        def edit() -> None:
            team.client.set_model_version_tag(NAME, "1", "base", "a better one")
            team.client.set_model_version_tag(NAME, "1", "gate:test/bleu", "pass")
            team.client.update_model_version(NAME, "1", "the best of all")

        edit()
        assert team.promote(reference).version == 1
        assert team.judgement() == []  # the copy says what the candidate says
        edit()
        (told,) = team.judgement()
        assert told.startswith(f"{NAME}@champion: verify tags: base, gate:test/bleu of the version")
        assert told.endswith(
            "`tunetrail rollback shipments --comment WHY` goes back, or promote a candidate that holds"
        )
        assert not team.promote(reference).made
        assert team.judgement() == []

    def test_an_entry_that_no_promotion_wrote(self, team, monkeypatch) -> None:
        """The author has a trusted key, and here the right to write the record too."""
        reference = team.candidate()
        team.work_as("author")
        with monkeypatch.context() as patch:
            patch.setattr(review, "objections", lambda *_: [])
            team.promote(reference, reviewer=f"Ada <{AUTHOR}>")
        (told,) = team.judgement()
        assert f"Ada <{AUTHOR}> promoted it, and is its author" in told

    def test_a_run_that_is_gone_for_good(self, team) -> None:
        """As `mlflow gc` leaves it: the version names a run that is no more."""
        reference = team.candidate()
        team.promote(reference)
        with closing(sqlite3.connect("mlflow.db")) as database, database:
            run_id = team.version(reference).run_id
            database.execute("delete from runs where run_uuid = ?", (run_id,))
        told = "verify signature: the run that registered it is gone from MLflow, and its evidence "
        assert refused(team, reference)[0].startswith(told)
        assert any(told in line for line in team.judgement())
        with pytest.raises(GateError, match=told):
            promotion.load_champion(NAME)

    def test_an_alias_on_something_else_with_the_right_number(self, team) -> None:
        """The version that was promoted is gone, and another has taken over its files."""
        reference, other = team.candidate(), team.candidate()
        team.promote(other)
        source = team.version(reference)
        with closing(sqlite3.connect("mlflow.db")) as database, database:
            database.execute(
                "update model_versions set run_id = ?, storage_location = (select storage_location "
                "from model_versions where name = ? and version = ?) where name = ?",
                (source.run_id, source.name, 1, NAME),
            )
            for key, value in source.tags.items():
                database.execute(
                    "update model_version_tags set value = ? where name = ? and key = ?",
                    (value, NAME, key),
                )
        (told,) = team.judgement()
        identity = source.tags["identity"]
        assert told.startswith(
            f"{NAME}@champion: version 1 has the identity {identity}, and the aud"
        )

    def test_a_deleted_version(self, team) -> None:
        first, second = team.candidate(), team.candidate()
        team.promote(first)
        team.reproduce(second)
        team.promote(second)
        team.client.delete_model_version(NAME, "1")
        with pytest.raises(Refused, match="there is no champion before this one"):
            team.rollback()
        team.client.delete_model_version(NAME, "2")
        team.reproduce(second)
        assert team.promote(second).version == 3
        assert team.judgement() == []

    def test_models_of_others_are_let_alone(self, team) -> None:
        team.candidate()
        team.client.create_registered_model("forecast")
        team.client.create_model_version("forecast", "models:/shipments-candidates/1")
        team.client.set_registered_model_alias("forecast", "champion", "1")
        assert team.judgement() == []


class Killed(BaseException):
    """The process died before this request."""


WRITES = (
    "create_experiment",
    "create_run",
    "set_terminated",
    "create_registered_model",
    "create_model_version",
    "set_registered_model_tag",
    "set_model_version_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "delete_run",
    "log_param",
)


@contextmanager
def killed(at: int) -> Iterator[list[str]]:
    """Within, the client dies before its write number `at`, counted from 1."""
    from mlflow import MlflowClient

    done: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **options: Any) -> Any:
            if len(done) + 1 >= at:
                raise Killed
            done.append(name)
            return real(*arguments, **options)

        return write

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(MlflowClient, name, counted(name, getattr(MlflowClient, name)))
        yield done


def copy_database(source: str, target: str) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


def at_every_write(
    act: Callable[[], Any], look: Callable[[int], None], first: int, step: int
) -> int:
    """Kill `act` before each of its writes in turn, `look` at what it leaves, and put all back.

    Returns:
        How many writes `act` takes.
    """
    copy_database("mlflow.db", "before.db")
    for at in (*range(first, 40, step), 99):
        with killed(at) as done:
            try:
                act()
            except Killed:
                pass
            else:
                return len(done)
        look(at)
        turn_back()
    raise AssertionError("it never ends")


def turn_back() -> None:
    copy_database("before.db", "mlflow.db")
    shutil.rmtree(audit.SEEN)  # the work tree would tell


@pytest.fixture(params=[4, pytest.param(1, marks=pytest.mark.slow)], ids="each {} writes".format)
def step(request: pytest.FixtureRequest) -> int:
    """Which writes a process dies before: a quarter of them, or all."""
    return int(request.param)


class TestKilled:
    def test_the_first_promotion(self, team, step: int) -> None:
        reference = team.candidate()

        def look(at: int) -> None:
            told = told_but_unfinished(team)
            assert all("it has none" in it or "is missing" in it for it in told), (at, told)
            assert team.promote(reference).version == 1
            assert team.aliases() == {"champion": 1}
            assert len(team.record().entries) == 1
            assert team.judgement() == [], at

        assert at_every_write(lambda: team.promote(reference), look, 1, step) == 15

    def test_the_next_promotion(self, team, step: int) -> None:
        first, second = team.candidate(), team.candidate()
        team.promote(first)
        team.reproduce(second)

        def same(at: int) -> None:
            sound(team, at)
            team.promote(second)
            assert team.aliases() == {"champion": 2, "previous": 1}, at
            assert len(team.client.search_model_versions(f"name = '{NAME}'")) == 2
            assert [entry.version for entry in team.record().entries] == [1, 2]
            assert team.judgement() == []

        def another(at: int) -> None:
            """Not the same command again, but another one."""
            sound(team, at)
            team.rollback(1)
            assert team.aliases()["champion"] == 1, at
            assert team.judgement() == []

        assert at_every_write(lambda: team.promote(second), same, 2, step) == 11
        turn_back()
        at_every_write(lambda: team.promote(second), another, 3, step)

    def test_the_way_back(self, team, step: int) -> None:
        first, second = team.candidate(), team.candidate()
        team.promote(first)
        team.reproduce(second)
        team.promote(second)

        def look(at: int) -> None:
            sound(team, at)
            team.rollback(1)
            assert team.aliases() == {"champion": 1}, at
            assert team.judgement() == []

        assert at_every_write(lambda: team.rollback(1), look, 1, step) == 10


def sound(team: Any, at: int) -> None:
    """The champion of before or the new one is served, whatever the moment."""
    assert told_but_unfinished(team) == [], at
    assert team.aliases()["champion"] in (1, 2)


def told_but_unfinished(team: Any) -> list[str]:
    return [line for line in team.judgement() if "was written and not carried out" not in line]


def test_two_promotions_at_once_give_one_champion(team) -> None:
    """Each saw the other's absence; MLflow takes one entry, and the other is judged again."""
    first, second = team.candidate(), team.candidate()
    team.pass_time()
    asked = ASKED
    outcomes: list[Any] = []

    def attempt(reference: str) -> None:
        try:
            outcomes.append(promotion.promote(reference, "grace@example.com", "", asked))
        except Refused as refusal:
            outcomes.append(refusal)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(attempt, [first, second]))
    promotions = [one for one in outcomes if isinstance(one, promotion.Promotion)]
    refusals = [one for one in outcomes if isinstance(one, Refused)]
    assert (len(promotions), len(refusals)) == (1, 1)
    assert "before the champion changed" in refusals[0].objections[0]
    assert len(team.record().entries) == 1
    assert team.record().champion.candidate == promotions[0].candidate
    assert team.judgement() == []


def test_a_slow_promotion_does_not_undo_a_later_one(team) -> None:
    """One has written its entry and sets its aliases only after another was through."""
    first, second = team.candidate(), team.candidate()
    real, team.patch_once = promotion._show, True

    def slow(client: Any, record: Any) -> None:
        if team.patch_once:
            team.patch_once = False
            team.reproduce(second)
            team.promote(second)
        real(client, record)

    team.patch.setattr(promotion, "_show", slow)
    team.promote(first)
    assert team.aliases() == {"champion": 2, "previous": 1}
    assert team.judgement() == []


def test_a_refusal_is_recorded_and_changes_nothing(team) -> None:
    first, second = team.candidate(), team.candidate()
    promotion.refuse(first, "grace@example.com", "it invents dates")
    assert team.record().champion is None
    team.promote(second)
    promotion.refuse(first, "grace@example.com", "still does")
    record = team.record()
    assert [entry.action for entry in record.entries] == ["refuse", "promote", "refuse"]
    assert record.problems == [] and record.unfinished == []
    assert record.entries[0].line == (
        f"   1  {record.entries[0].document['time']}  grace@example.com  refused {first}: "
        "it invents dates"
    )
    assert team.judgement() == []


def test_nothing_is_done_on_a_record_that_does_not_hold(team) -> None:
    first, second = team.candidate(), team.candidate()
    team.promote(first)
    team.reproduce(second)
    team.client.set_registered_model_tag(NAME, audit.HEAD_TAG, "0" * 64)
    (told,) = refused(team, second)
    assert told.startswith(
        "the audit record of shipments does not hold: the newest entry was 00000"
    )
    with pytest.raises(Refused, match="its audit record does not hold"):
        team.rollback(1)
    with pytest.raises(Refused, match="its audit record does not hold"):
        promotion.refuse(second, "grace@example.com", "")
    with pytest.raises(
        GateError, match="the audit record does not hold: the newest entry was 0000"
    ):
        promotion.load_champion(NAME)


def test_mlflow_out_of_reach_is_said(team, closed_port, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_port)
    with pytest.raises(store.Unreachable):
        promotion.load_champion(NAME)
    assert evidence.parse(f"{NAME}@1") == (NAME, "1")
