from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

from tasks.lineage import machine


def test_the_facts_are_of_this_machine() -> None:
    facts = machine.facts()
    assert facts["python"] == platform.python_version()
    assert facts["cpu"]["model"]
    assert facts["cpu"]["count"] >= 1
    assert facts["libraries"]["torch"]
    assert json.loads(json.dumps(facts)) == facts


def test_reading_them_loads_no_library() -> None:
    code = (
        "import sys; from tasks.lineage import machine; machine.facts(); "
        "print({'torch', 'numpy', 'onnxruntime'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "set()\n"


def test_instruction_sets_are_those_that_pick_kernels(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "model name\t: EPYC\nflags\t\t: fpu avx avx2 fma rdtscp\n\nmodel name : other\n"
    )
    told = machine._cpu(cpuinfo)
    assert told["model"] == "EPYC"
    assert told["flags"] == ["avx", "avx2", "fma"]


def test_cards_are_named(tmp_path: Path) -> None:
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   79\n")
    assert machine._gpus(tmp_path) == ["NVIDIA H200"]
    assert machine._gpus(tmp_path / "none") == []
