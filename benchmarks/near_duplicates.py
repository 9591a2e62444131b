"""Measure what is claimed of near-duplicates, against datatrove's MinHash pipeline and datasketch.

    python benchmarks/near_duplicates.py [--quick] [--runs N] [--json FILE]

Clusters 200,000 generated documents of about 100 words, one in five a copy of another with some words
changed. All three have the same 128 hashes in the same bands and the same two processor cores; each
run is a process of its own (near_duplicates_methods.py says what is inside the time), and they take
turns. Before anything is timed, each clusters a sample of 20,000 documents of which all pairs are
compared exactly. Needs the peers: pip install -e '.[benchmarks]'.

Prints a table and one line a claim; exits 1 when one falls short. `--quick` times the sample alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from claims import claim
from near_duplicates_methods import CORES, THRESHOLD, shingles
from numpy.typing import NDArray

SEED = 20260706
METHODS = ("ours", "datatrove", "datasketch")
DOCUMENTS, SAMPLE = 200_000, 20_000
LENGTH = (70, 130)
VOCABULARY = 50_000
FAMILY = 5
"""In so many documents, all of one sample or of none, the last copies the first."""
MOST_CHANGED = 0.15
"""Share of the words of a copy that are changed: similarities from 1 down to about 0.5."""


@dataclass(frozen=True)
class Result:
    """What a method did: the medians of its runs, and how right it was on the sample."""

    method: str
    seconds: float
    documents_a_second: float
    clusters: int
    """Of at least two documents."""
    pairs: int
    """Of documents in one cluster."""
    precision: float
    """Share of the pairs in one cluster that exact comparison puts into one cluster too."""
    recall: float
    """Share of the near-duplicates, by exact comparison, that are in one cluster."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="time 20,000 documents, not 200,000")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each method")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    missing = [name for name in METHODS[1:] if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"{' and '.join(missing)} not installed; run pip install -e '.[benchmarks]'")

    documents = generated(SAMPLE if options.quick else DOCUMENTS)
    with tempfile.TemporaryDirectory() as scratch:
        sample = stored(documents[:SAMPLE], Path(scratch) / "sample")
        whole = stored(documents, Path(scratch) / "whole")
        near = near_pairs(documents[:SAMPLE])
        rightness = {name: judged(run(name, sample)[1], near) for name in METHODS}
        print(f"sample: {len(near)} pairs of near-duplicates", flush=True)

        seconds: dict[str, list[float]] = {name: [] for name in METHODS}
        clusters: dict[str, NDArray[np.int64]] = {}
        for _ in range(options.runs):
            for name in METHODS:
                taken, found = run(name, whole)
                if not np.array_equal(clusters.setdefault(name, found), found):
                    sys.exit(f"{name} found other clusters in another run")
                seconds[name].append(taken)
                print(f"  {name}: {taken:.2f} s", flush=True)
    results = [
        result(name, statistics.median(seconds[name]), clusters[name], *rightness[name])
        for name in METHODS
    ]
    print(table(results))
    ours, *peers = results
    claims = [
        claim(f"times-as-fast-as-{peer.method}", peer.seconds / ours.seconds, 5) for peer in peers
    ]
    claims += [claim("precision", ours.precision, 1), claim("recall", ours.recall, 0.97)]
    if options.json:
        report = {
            "documents": len(documents),
            "runs": options.runs,
            "seconds": seconds,
            "results": [asdict(each) for each in results],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(claims) else 1)


def generated(count: int) -> list[str]:
    """Documents of words whose frequency falls with their rank (Zipf), some of them near copies."""
    rng = np.random.default_rng(SEED)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = np.array(
        [
            "".join(letters[rng.integers(26, size=length)])
            for length in rng.integers(2, 11, VOCABULARY)
        ],
        dtype=object,
    )
    ranks = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    documents: list[NDArray[Any]] = []
    for number in range(count):
        if number % FAMILY == FAMILY - 1:
            words = documents[number - FAMILY + 1].copy()
            changed = rng.integers(int(MOST_CHANGED * len(words)) + 1)
            words[rng.choice(len(words), changed, replace=False)] = rng.choice(vocabulary, changed)
        else:
            words = vocabulary[
                np.searchsorted(ranks, ranks[-1] * rng.random(rng.integers(*LENGTH)))
            ]
        documents.append(words)
    return [" ".join(words) for words in documents]


def stored(documents: Sequence[str], folder: Path) -> Path:
    (folder / "documents").mkdir(parents=True)
    for part in range(CORES):
        begin, end = (len(documents) * edge // CORES for edge in (part, part + 1))
        lines = (json.dumps({"id": str(n), "text": documents[n]}) for n in range(begin, end))
        (folder / "documents" / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def near_pairs(documents: Sequence[str]) -> NDArray[np.int64]:
    """All pairs at or above the threshold, shape (pairs, 2): every pair that shares a shingle."""
    from scipy.sparse import csr_array

    numbers: dict[bytes, int] = {}
    own = [
        [numbers.setdefault(each, len(numbers)) for each in shingles(text)] for text in documents
    ]
    sizes = np.array([len(each) for each in own])
    ends = np.cumsum([0, *sizes])
    holds = csr_array(
        (np.ones(ends[-1], dtype=np.int32), np.concatenate(own), ends),
        shape=(len(own), len(numbers)),
    )
    by_shingle = holds.T.tocsr()
    found = []
    for begin in range(0, len(own), 1_000):
        shared = (holds[begin : begin + 1_000] @ by_shingle).tocoo()
        left, right = begin + shared.row.astype(np.int64), shared.col.astype(np.int64)
        similarity = shared.data / (sizes[left] + sizes[right] - shared.data)
        near = (similarity >= THRESHOLD) & (left < right)
        found.append(np.stack([left[near], right[near]], axis=1))
    return np.concatenate(found)


def run(method: str, folder: Path) -> tuple[float, NDArray[np.int64]]:
    """Seconds and the cluster of each document."""
    script = Path(__file__).with_name("near_duplicates_methods.py")
    done = subprocess.run(
        [sys.executable, str(script), method, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{method} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1]), np.load(folder / f"{method}.npy")


def judged(clusters: NDArray[np.int64], near: NDArray[np.int64]) -> tuple[float, float]:
    """Precision and recall of clusters, by the pairs that are near."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(clusters)
    edges = coo_array((np.ones(len(near), dtype=np.int8), near.T), shape=(count, count))
    exact = connected_components(edges, directed=False)[1]
    both = np.unique(np.stack([clusters, exact], axis=1), axis=0, return_inverse=True)[1]
    recall = float(np.mean(clusters[near[:, 0]] == clusters[near[:, 1]]))
    return pairs(both) / pairs(clusters), recall


def pairs(clusters: NDArray[np.int64]) -> int:
    """Pairs of members of one cluster."""
    sizes = np.unique(clusters, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())


def result(
    method: str, seconds: float, clusters: NDArray[np.int64], precision: float, recall: float
) -> Result:
    sizes = np.unique(clusters, return_counts=True)[1]
    crowded = int(np.count_nonzero(sizes > 1))
    speed = len(clusters) / seconds
    return Result(method, seconds, speed, crowded, pairs(clusters), precision, recall)


def table(results: Sequence[Result]) -> str:
    lines = [
        "| method | seconds | documents a second | clusters | pairs | precision | recall |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {each.method} | {each.seconds:.2f} | {each.documents_a_second:,.0f} | {each.clusters:,} "
        f"| {each.pairs:,} | {each.precision:.4f} | {each.recall:.4f} |"
        for each in results
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
