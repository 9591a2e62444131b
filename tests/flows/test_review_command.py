"""`tunetrail review`: a page that tells nothing, votes that come back, and what promotion makes of
them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from flows import review
from flows.cli import DONE, MISUSE, app
from tasks.lineage import hashes
from tasks.voting import page

pytest_plugins = ("work_trees", "promotable", "answered")

ROWS = 12


def tunetrail(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), prog_name="tunetrail")


def set_promote(**values: Any) -> None:
    yaml = YAML()
    document = yaml.load(Path("params.yaml"))
    document["promote"] |= values
    yaml.dump(document, Path("params.yaml"))


def exported(candidate: str, *options: str) -> tuple[str, dict[str, dict[str, str]]]:
    """A page's hash and key."""
    before = set(review.KEYS.glob("*.json"))
    shown = tunetrail("review", "export", candidate, *options)
    assert shown.exit_code == DONE, shown.output
    (key,) = set(review.KEYS.glob("*.json")) - before
    return key.stem, json.loads(key.read_text())["pairs"]


def votes_file(name: str, export: str, votes: dict[str, str], person: str, **other: str) -> str:
    """As the page writes it."""
    version = other.pop("version", "shipments-candidates@1")
    lines = [f"{pair} {side}" for pair, side in votes.items()]
    told = {"format": page.FORMAT, "version": version, "export": export, "person": person}
    told |= {"votes": votes, "sha256": page.checksum(*told.values(), *lines)}
    Path(name).write_text(json.dumps(told | other))
    return name


def for_final(key: dict[str, dict[str, str]]) -> dict[str, str]:
    """The votes of somebody who always prefers the final candidate."""
    return {
        number: "first" if pair["first"] == "final" else "second" for number, pair in key.items()
    }


def link_evaluate(team: Any, latency: float) -> None:
    """The run of evaluate, as the courier delivers it late."""
    run = team.client.create_run("0").info.run_id
    digest = hashes.dvc_md5(Path("models/verdict.json"))
    team.client.set_tag(run, "out:models/verdict.json", digest)
    team.client.log_metric(run, "dpo/latency_p95_seconds", latency)
    team.client.set_model_version_tag("shipments-candidates", "1", "run:evaluate", run)


def test_from_page_to_promotion(team: Any, candidate: str) -> None:
    set_promote(votes=20, min_win_rate=0.5)
    refused = tunetrail("promote", candidate, "--yes", "--reviewer", "grace")
    again = f"`tunetrail review export {candidate}`"
    assert refused.stderr == (
        f"{candidate} is not promoted: 2 reasons\n"
        f"  gate votes/count: 0 votes of people against base are fewer than 20; {again}\n"
        f"  gate votes/win_rate: nobody has voted against base; {again}\n"
    )

    export, key = exported(candidate, "--rows", "10", "--out", "page.html")
    assert len(key) == 10
    (review.KEYS / f"{export}.json").unlink()  # another person imports
    votes_file("bob.json", export, for_final(key), "Bob <bob@example.com>")
    split = {number: side if int(number) < 6 else "tie" for number, side in for_final(key).items()}
    votes_file("eve.json", export, split, "eve")
    shown = tunetrail("review", "import", "bob.json", "eve.json")
    assert shown.exit_code == DONE, shown.output
    assert shown.output.startswith(
        "bob.json: 10 votes of Bob <bob@example.com>\neve.json: 10 votes of eve\n"
        f"{candidate}:\n"
        "  2 people, 20 votes on 10 rows: dpo won 16, lost 0, tied 4 against base\n"
        "  win rate 0.900 (0.596 to 0.982), ties counted half\n"
        "  people agree on 60% of 10 comparisons, kappa -0.25\n"
    )
    tags = team.version(candidate).tags
    assert (tags["votes"], tags["votes.people"], tags["votes.against"]) == ("20", "2", "base")
    assert tags["votes.win_rate"] == "0.900 (0.596 to 0.982)"
    assert tunetrail("verify", candidate).exit_code == DONE
    set_promote(max_latency_p95_seconds=0.5)
    refused = tunetrail("promote", candidate, "--yes", "--reviewer", "grace")
    assert "latency/p95_seconds: the run of evaluate has no latency_p95_seconds;" in refused.stderr
    link_evaluate(team, latency=0.2)
    done = tunetrail("promote", candidate, "--yes", "--reviewer", "grace")
    assert done.exit_code == DONE, done.output
    assert "  holds  gate latency/p95_seconds: 95% of its answers came within 0.2 s" in done.output
    assert "  holds  gate votes/count: 20 votes of people against base are enough\n" in done.output
    evidence = team.record().champion.document["evidence"]
    assert (len(evidence["gates"]), len(evidence["opinions"])) == (3, 2)


def test_a_page_tells_nothing(team: Any, candidate: str) -> None:
    """Neither names, nor rows, nor expected answers, nor an order that could be known."""
    _, key = exported(candidate, "--out", "page.html")
    text = Path("page.html").read_text()
    for secret in ("dpo", "sft", "final", '"expected"', "s.jsonl"):
        assert secret not in text
    assert len(key) == ROWS
    _, other = exported(candidate, "--out", "other.html")
    assert list(key.values()) != list(other.values())
    assert tunetrail("review", "export", candidate, "--out", "page.html").exit_code == MISUSE
    payload = re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert payload is not None
    assert len(json.loads(payload[1])["pairs"]) == ROWS  # what a model wrote has closed nothing
    assert "<img" not in text
    shown = tunetrail("review", "export", candidate, "--against", "sft")
    assert "dpo and sft say the same on all 12 rows of the test" in shown.stderr
    shown = tunetrail("review", "export", candidate, "--against", "nobody")
    assert "nobody has answered no row of the test; those that have: base, sft, dpo" in shown.stderr
    assert shown.exit_code == MISUSE


class TestRefusals:
    @pytest.fixture
    def made(self, candidate: str) -> tuple[str, dict[str, dict[str, str]]]:
        return exported(candidate, "--out", "page.html")

    def refused(self, *names: str) -> str:
        shown = tunetrail("review", "import", *names)
        assert shown.exit_code == MISUSE
        return str(shown.output)

    def test_what_does_not_count(self, made: Any) -> None:
        export, key = made
        votes_file("v.json", "0" * 64, for_final(key), "bob")
        said = self.refused("v.json")
        assert "refused: v.json: votes on another export, 000000000000: none of the 1 pages" in said

        votes_file("v.json", export, for_final(key), "bob")
        text = Path("v.json").read_text()
        Path("v.json").write_text(text.replace('"bob"', '"eve"'))
        assert "v.json: altered after it was downloaded" in self.refused("v.json")
        votes_file("v.json", export, {"0": "third"}, "bob")
        assert "v.json: altered after it was downloaded" in self.refused("v.json")
        votes_file("v.json", export, {"99": "tie"}, "bob")
        assert "v.json: votes on pair 99, which its page does not have" in self.refused("v.json")
        for text in ("", "[]", "{}", '{"votes": {"x": "tie"}}', "\x00"):
            Path("v.json").write_text(text)
            assert "v.json: not a votes file" in self.refused("v.json")
        assert "cannot be read" in self.refused("no-such-file.json")

        votes_file("v.json", export, for_final(key), " ")
        assert "v.json: names nobody" in self.refused("v.json")
        votes_file("v.json", export, {}, "bob")
        assert "v.json: holds no vote" in self.refused("v.json")
        votes_file("v.json", export, for_final(key), "Ada <ADA+votes@example.com>")
        assert "is the author of shipments-candidates@1; others must compare" in self.refused(
            "v.json"
        )

    def test_twice_the_same_person(self, team: Any, candidate: str, made: Any) -> None:
        """On the same page, on another page with the same rows, under a name of the same person;
        the others still count."""
        export, key = made
        votes_file("one.json", export, for_final(key), "bob@example.com")
        votes_file("two.json", export, for_final(key), "Bob <bob@example.com>")
        votes_file("eve.json", export, for_final(key), "eve")
        said = self.refused("one.json", "two.json", "eve.json")
        assert "one.json: 12 votes of bob@example.com\neve.json: 12 votes of eve\n" in said
        assert "two.json: bob@example.com has voted on 12 of these pairs already" in said
        assert "2 people, 24 votes on 12 rows" in said
        another, other_key = exported(candidate, "--out", "other.html", "--rows", "3")
        votes_file("three.json", another, for_final(other_key), "bob")
        assert "has voted on 3 of these pairs already" in self.refused("three.json")

        (kept,) = [
            file
            for file in Path("mlruns").glob("*/*/artifacts/opinions/export-*.json")
            if json.loads(file.read_text())["export"] == export
        ]
        kept.unlink()
        local = review.KEYS / f"{export}.json"
        local.write_text(local.read_text().replace('"first": "other"', '"first": "final"'))
        votes_file("v.json", export, for_final(key), "fay")
        assert "it was edited" in self.refused("v.json")
