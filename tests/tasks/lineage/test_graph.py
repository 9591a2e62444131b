"""What was made from what, forwards and backwards, over several versions."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tasks.lineage import drawing, graph
from tasks.lineage.graph import Artifact, Graph, Run, Version
from tasks.lineage.stage import StageError


def digest(letter: str) -> str:
    return letter * 32


def record(stage: str, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, Any]:
    return {
        "stage": stage,
        "params": {},
        "inputs": {path: digest(letter) for path, letter in inputs.items()},
        "outputs": {
            path: {"md5": digest(letter), "sha256": digest(letter) * 2}
            for path, letter in outputs.items()
        },
    }


INGEST = record("ingest", {"data/raw": "a", "tasks/ingest.py": "0"}, {"data/ingested": "b"})
SFT = record("sft", {"data/ingested": "b", "requirements.lock": "1"}, {"models/sft": "c"})
DPO = record("dpo", {"models/sft": "c", "data/ingested": "b"}, {"models/dpo": "d"})
OTHER_DPO = record("dpo", {"models/sft": "c", "data/ingested": "b"}, {"models/dpo": "e"})

FIRST = Version("desk@1", "f" * 64, ("champion",))
SECOND = Version("desk@2", "9" * 64)


@pytest.fixture
def two_versions() -> Graph:
    """They share everything up to the SFT adapter."""
    found = Graph()
    found.add(FIRST, [INGEST, SFT, DPO])
    found.add(SECOND, [INGEST, SFT, OTHER_DPO])
    return found


def names(nodes: list[Any]) -> list[str]:
    return [node.stage if isinstance(node, Run) else str(node) for node in nodes]


def test_backwards_from_an_adapter_come_its_stages_and_its_data(two_versions: Graph) -> None:
    (adapter,) = two_versions.find(digest("c"))
    before = names(two_versions.backwards(adapter))
    assert [name for name in before if name in ("ingest", "sft", "dpo")] == ["ingest", "sft"]
    assert before.index("data/raw aaaaaaaa") < before.index("ingest")
    assert "models/dpo dddddddd" not in before


def test_forwards_from_data_come_all_that_were_made_of_it(two_versions: Graph) -> None:
    (raw,) = two_versions.find("aaaa")
    after = two_versions.forwards(raw)
    assert {FIRST, SECOND} < set(after)
    assert names(after).count("ingest") == 1, "shared by both versions"
    assert names(after).count("dpo") == 2
    assert names(after).index("ingest") < names(after).index("sft")


@pytest.mark.parametrize("text", ["desk@1", "desk@champion", "ffff", "FFFFFF"])
def test_a_version_goes_by_name_alias_and_identity(text: str, two_versions: Graph) -> None:
    assert two_versions.find(text) == [FIRST]


def test_a_version_lists_what_it_was_made_from_alone(two_versions: Graph) -> None:
    text = "\n".join(graph.describe(two_versions, SECOND, code=False))
    assert "models/dpo eeeeeeee" in text
    assert "models/dpo dddddddd" not in text
    assert "went into\n  nothing that is known here" in text


def test_a_description_reads_from_the_sources_to_the_versions(two_versions: Graph) -> None:
    (adapter,) = two_versions.find("cccccc")
    assert graph.describe(two_versions, adapter, code=False) == [
        f"models/sft, md5 {digest('c')}, sha256 {digest('c') * 2}",
        "",
        "made from",
        "  source  data/raw aaaaaaaa",
        "  ingest  data/raw aaaaaaaa  ->  data/ingested bbbbbbbb",
        "  sft     data/ingested bbbbbbbb  ->  models/sft cccccccc",
        "",
        "went into",
        "  dpo      data/ingested bbbbbbbb, models/sft cccccccc  ->  models/dpo eeeeeeee",
        "  version  desk@2, identity 99999999",
        "  dpo      data/ingested bbbbbbbb, models/sft cccccccc  ->  models/dpo dddddddd",
        "  version  desk@1 (champion), identity ffffffff",
    ]


def test_code_is_shown_when_asked_for(two_versions: Graph) -> None:
    (adapter,) = two_versions.find("cccccc")
    text = "\n".join(graph.describe(two_versions, adapter, code=True))
    assert "source  requirements.lock 11111111" in text
    assert "data/raw aaaaaaaa, tasks/ingest.py 00000000  ->" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abc", "'abc' is too short for a hash; give 4 digits or more"),
        ("12345678", "no version, artifact or data here has the hash '12345678'"),
        ("desk@7", "no version, artifact or data here has the hash 'desk@7'"),
    ],
)
def test_what_is_not_there_is_said(text: str, message: str, two_versions: Graph) -> None:
    with pytest.raises(StageError, match=re.escape(message)):
        two_versions.find(text)


def test_a_beginning_of_several_hashes_lists_them() -> None:
    found = Graph()
    first = {"stage": "a", "params": {}, "inputs": {"x": "abcd1" + "0" * 27}, "outputs": {}}
    found.add(None, [first, {**first, "inputs": {"y": "abcd2" + "0" * 27}}])
    with pytest.raises(StageError, match=r"several hashes; add digits:\n  abcd10+ x abcd1"):
        found.find("abcd")
    assert found.find("abcd2") == [Artifact("y", "abcd2" + "0" * 27, None)]


def test_the_same_content_at_two_places_is_both(two_versions: Graph) -> None:
    copied = record("copy", {"models/sft": "c"}, {"models/copied": "c"})
    two_versions.add(None, [copied])
    assert names(two_versions.find("cccc")) == ["models/copied cccccccc", "models/sft cccccccc"]


def test_a_drawing_has_a_box_a_stage_and_an_edge_where_no_other_way_leads(
    two_versions: Graph,
) -> None:
    picture = drawing.svg(two_versions, two_versions.nodes, two_versions.find("cccc"))
    root = ET.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    titles = [
        text.text for text in root.iter(f"{space}text") if text.attrib.get("font-weight") == "600"
    ]
    assert sorted(titles) == ["data/raw", "desk@1", "desk@2", "dpo", "dpo", "ingest", "sft"]
    # ingest also leads to both dpo, by way of sft; every stage leads to its version, by dpo
    assert len(root.findall(f"{space}path")) == 6
    thick = [r for r in root.iter(f"{space}rect") if r.attrib["stroke-width"] == "2.5"]
    assert len(thick) == 1


def test_a_drawing_is_the_same_bytes_each_time_and_escapes_names() -> None:
    def draw() -> str:
        found = Graph()
        odd = record("a<b>", {"data/<script>": "a"}, {"out&": "b"})
        found.add(None, [odd])
        return drawing.svg(found, found.nodes)

    assert draw() == draw()
    assert "<script>" not in draw()
    assert ET.fromstring(draw()) is not None


def test_deep_chains_need_no_recursion() -> None:
    found = Graph()
    for number in range(3000):
        inputs, outputs = {str(number): f"{number:032x}"}, {str(number + 1): number + 1}
        found.add(
            None,
            [
                {
                    "stage": f"s{number}",
                    "params": {},
                    "inputs": inputs,
                    "outputs": {
                        path: {"md5": f"{value:032x}", "sha256": f"{value:064x}"}
                        for path, value in outputs.items()
                    },
                }
            ],
        )
    last = Artifact("3000", f"{3000:032x}", None)
    assert len(found.backwards(last)) == 6000
