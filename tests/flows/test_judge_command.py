"""`tunetrail judge`: what is asked, refused, kept with the version, and what promotion makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from flows import judge as judging
from flows.cli import DONE, FAULT, GATE, MISUSE, app
from tasks.lineage import hashes, opinions
from tasks.lineage.tracking import Spool
from tasks.params import load
from tasks.voting import judge as asking

pytest_plugins = ("work_trees", "promotable", "answered", "chat_server")


def tunetrail(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="tunetrail")


def set_values(section: str, **values: Any) -> None:
    yaml = YAML()
    document = yaml.load(Path("params.yaml"))
    document[section] |= values
    yaml.dump(document, Path("params.yaml"))


def trained_with(team: Any, rubric: str) -> None:
    """A run of the stage sft, as the runner records it."""
    from tasks.lineage import courier

    spool = Spool(Path(".tunetrail/spool"), "sft", "shipments")
    spool.start({"judge": {"rubric_sha256": opinions.rubric_sha256({"rubric": rubric})}}, {})
    spool.write("tag", key="out:models/sft", value=hashes.dvc_md5(Path("models/sft")))
    spool.end("FINISHED")
    assert courier.Courier(Path(".tunetrail/spool")).round(5) == []


@pytest.fixture
def candidate(team: Any) -> str:
    """A version that is to be judged by m, seen by the reviewer."""
    from answered import write_predictions

    set_values("judge", model="m")
    write_predictions()
    return str(team.candidate())


@pytest.fixture
def endpoint(candidate: str, chat_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A judge that goes by content, asked by the reviewer's params.yaml."""
    from chat_server import prefers

    monkeypatch.setattr(asking, "PAUSE_SECONDS", 0.001)
    chat_server.answer = prefers(lambda text: text.startswith("right"))
    set_values("judge", endpoint=chat_server.endpoint, model="m", retries=1)
    return chat_server


def judged(team: Any, reference: str) -> list[Any]:
    return opinions.read(team.client, team.version(reference), Path()).judgements


def test_a_judge_speaks_and_promotion_listens(team: Any, candidate: str, endpoint: Any) -> None:
    set_values("promote", judge_min_win_rate=0.5)
    refused = tunetrail("promote", candidate, "--yes", "--reviewer", "grace")
    assert refused.exit_code == GATE
    assert refused.stderr == (
        f"{candidate} is not promoted: 1 reason\n  gate judge/win_rate: not judged: nobody has asked "
        f"a judge; `tunetrail judge {candidate}`\n"
    )

    trained_with(team, load(Path("params.yaml")).judge.rubric)
    shown = tunetrail("judge", candidate)
    assert shown.exit_code == DONE, shown.output
    assert f"{candidate}: dpo against base, 12 pairs of 12 test rows (0 with the" in shown.output
    assert f"{candidate} is judged\n  dpo wins 12, loses 0, ties 0 against base\n" in shown.output
    assert "  win rate 1.000 (0.758 to 1.000), ties counted half\n" in shown.output
    assert "  the rubric was fixed before training\n" in shown.output

    (said,) = judged(team, candidate)
    assert (said["answer"], said["won"], said["model"], said["against"]) == (
        "judged", 12, "m", "base"
    )  # fmt: skip
    assert said["pairs"][0]["final first"]["said"] == "I weighed them.\nBetter: A"
    shown_texts = {asking.sha256(text) for text in endpoint.texts()}
    assert {
        pair[order]["shown"] for pair in said["pairs"] for order in asking.ORDERS
    } == shown_texts
    tags = team.version(candidate).tags
    assert tags["judge"] == "judged"
    assert tags["judge.win_rate"] == "1.000 (0.758 to 1.000)"
    assert tags["judge.rubric_fixed_before_training"] == "yes"
    assert tunetrail("verify", candidate).exit_code == DONE  # what came later breaks no signature

    done = tunetrail("promote", candidate, "--yes", "--reviewer", "grace")
    assert done.exit_code == DONE, done.output
    line = (
        "  holds  gate judge/win_rate: a win rate of 1.000 against base, whose interval begins at"
    )
    assert line in done.output
    assert "  noted  judge: win rate 1.000 (0.758 to 1.000) against base, by m at " in done.output
    kept = team.record().champion.document["evidence"]
    assert [gate["metric"] for gate in kept["gates"]] == ["win_rate"]
    assert kept["opinions"] == [hashes.sha256_json(said)]
    assert team.judgement() == []
    (file,) = Path("mlruns").glob("*/*/artifacts/opinions/judgement-*.json")
    file.unlink()
    (told,) = team.judgement()
    assert told.startswith(
        "shipments@champion: 1 of the 1 opinions on which it was promoted are not in opinions/ any more"
    )


def test_a_rubric_that_was_not_fixed(team: Any, candidate: str, endpoint: Any) -> None:
    set_values("promote", judge_min_win_rate=0.5)
    assert tunetrail("judge", candidate).exit_code == DONE
    refused = tunetrail("promote", candidate, "--yes", "--reviewer", "grace")
    assert "gate judge/win_rate: no run tells whether its rubric was fixed before" in refused.stderr
    trained_with(team, "another")
    trained_with(team, load(Path("params.yaml")).judge.rubric)  # again, to look as if
    assert tunetrail("judge", candidate).exit_code == DONE
    fixed = [said["fixed_before_training"] for said in judged(team, candidate)]
    assert sorted(fixed) == ["no", "unknown"]
    refused = tunetrail("promote", candidate, "--yes", "--reviewer", "grace")
    assert "its rubric is younger than its weights (judgement " in refused.stderr
    assert all(f"noted  judge, {number} of 2 judgements: " in refused.output for number in (1, 2))
    assert refused.output.count("; not counted") == 1


def test_what_is_refused(team: Any, candidate: str, endpoint: Any) -> None:
    rubric = load(Path("params.yaml")).judge.rubric
    set_values("judge", rubric="The longer answer is better.")
    shown = tunetrail("judge", candidate)
    assert shown.exit_code == MISUSE
    assert f"judge.rubric in params.yaml is not the rubric of {candidate} (sha256 " in shown.stderr
    set_values("judge", rubric=rubric, model="milder")
    shown = tunetrail("judge", candidate)
    assert shown.exit_code == MISUSE
    assert f"is milder, and {candidate} is to be judged by m, as its own" in shown.stderr
    set_values("judge", endpoint=None, model="m")
    assert "judge.endpoint is null, so there is no judge;" in tunetrail("judge", candidate).stderr
    set_values("judge", endpoint=endpoint.endpoint, api_key_env="NO_SUCH_KEY")
    assert "names NO_SUCH_KEY, which is not set" in tunetrail("judge", candidate).stderr
    assert tunetrail("judge", "shipments-candidates@9").exit_code == MISUSE
    set_values("judge", api_key_env=None, rubric=rubric)
    (file,) = Path("mlruns").glob("*/*/artifacts/report/predictions.jsonl")
    file.write_text(file.read_text().replace("wrong", "worse"))
    shown = tunetrail("judge", candidate)
    assert shown.exit_code == GATE
    assert "what was not signed is not worth comparing" in shown.stderr
    assert endpoint.bodies == []
    assert judged(team, candidate) == []


def test_down_is_noted_and_asked_again(team: Any, candidate: str, endpoint: Any) -> None:
    """What was answered before is not asked again; what was not is."""
    good = endpoint.answer
    endpoint.answer = lambda body: good(body) if len(endpoint.bodies) <= 4 else (503, b"down")
    set_values("judge", concurrency=1)
    shown = tunetrail("judge", candidate)
    assert shown.exit_code == FAULT
    assert f"{candidate} is not judged\n  not judged: 10 of 12 pairs\n" in shown.output
    assert "  why: 2 of 12 pairs were judged; it answers 503: down\n" in shown.output
    assert "It is noted on the version. Mend that, and run it again" in shown.stderr
    assert team.version(candidate).tags["judge"] == "not judged"
    set_values("promote", judge_min_win_rate=0.5)
    refused = tunetrail("promote", candidate, "--yes", "--reviewer", "grace")
    assert (
        "gate judge/win_rate: not judged: 2 of 12 pairs were judged; it answers" in refused.stderr
    )

    endpoint.answer = good
    endpoint.bodies.clear()
    assert tunetrail("judge", candidate).exit_code == DONE
    assert len(endpoint.bodies) == 20
    assert [said["answer"] for said in judged(team, candidate)] == ["not judged", "judged"]
    assert list(judging.KEPT.iterdir()) == []

    files = sorted(Path("mlruns").glob("*/*/artifacts/opinions/judgement-*.json"))
    for file in files:
        file.write_text(json.dumps({**json.loads(file.read_text()), "won": 1000}))
    files[0].with_name("judgement-0.json").write_text("[]")
    said = opinions.read(team.client, team.version(candidate), Path())
    assert said.judgements == []
    assert ["it was edited" in line for line in said.untrusted] == [False, True, True]
    assert said.untrusted[0] == "judgement-0.json: not written by Tunetrail"
    shown = tunetrail("promote", candidate, "--yes", "--reviewer", "grace")
    assert "  noted  not counted: judgement-" in shown.output
