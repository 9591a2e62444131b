"""One clustering of benchmarks/near_duplicates.py, in a process of its own: ours or a peer's.

    python benchmarks/near_duplicates_methods.py ours|datatrove|datasketch FOLDER

Reads FOLDER/documents/*.jsonl, writes FOLDER/<method>.npy (the cluster of each document, named by one
of its documents) and prints the seconds between: reading the files is in them, imports are not, but
for those of the workers that datatrove starts. All have the same 128 hashes in 32 bands of 4 over the
same shingles of 3 words, and two processor cores.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
THRESHOLD, SHINGLE_WORDS, PERMUTATIONS, BANDS, ROWS = 0.7, 3, 128, 32, 4
CORES = 2
SEED = 1
SCHEME = "affine32"
"""Of datasketch's permutations: the default, and the fastest."""


def main() -> None:
    method, folder = sys.argv[1], Path(sys.argv[2])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    run = {"ours": ours, "datatrove": datatrove, "datasketch": datasketch}[method](folder)
    started = time.perf_counter()
    clusters = run()
    seconds = time.perf_counter() - started
    np.save(folder / f"{method}.npy", clusters)
    print(seconds)


def files(folder: Path) -> list[Path]:
    """As many files as cores, since datatrove gives a worker whole files."""
    return sorted((folder / "documents").iterdir())


def texts(paths: Iterable[Path]) -> list[str]:
    return [orjson.loads(line)["text"] for path in paths for line in path.open("rb")]


def ours(folder: Path) -> Any:
    sys.path.insert(0, str(ROOT))
    from tasks.dataset import duplicates
    from tasks.params import NearDuplicates

    settings = NearDuplicates(
        threshold=THRESHOLD, shingle_words=SHINGLE_WORDS, permutations=PERMUTATIONS
    )
    assert duplicates.bands(settings) == (BANDS, ROWS)
    return lambda: duplicates.clusters(texts(files(folder)), settings, SEED).labels()


def datatrove(folder: Path) -> Any:
    """Signatures, buckets and clusters, each by its executor with two workers; its defaults but for
    the sizes. Its JSONL reader, its folders and its logs are in the time, as they are in its use."""
    import xxhash
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Words(WordTokenizer):  # type: ignore[misc]
        """At spaces: the generated text needs no more, and no tokenizer of its own is as fast."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))]

    class Signature(MinhashDedupSignature):  # type: ignore[misc]
        """xxhash 4 takes bytes only, and datatrove 0.10.1 gives it text."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._hash_func = lambda shingle: xxhash.xxh64_intdigest(shingle.encode())

    config = MinhashConfig(n_grams=SHINGLE_WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS)
    own = folder / "datatrove"
    steps: list[tuple[list[Any], int]] = [
        (
            [
                JsonlReader(str(folder / "documents")),
                Signature(str(own / "signatures"), config=config, language=Words()),
            ],
            CORES,
        ),
        (
            [MinhashDedupBuckets(str(own / "signatures"), str(own / "pairs"), config=config)],
            BANDS,
        ),
        (
            [
                MinhashDedupCluster(
                    str(own / "pairs"), str(own / "clusters"), config=config, save_cluster_id=True
                )
            ],
            1,
        ),
    ]

    def run() -> NDArray[np.int64]:
        for number, (pipeline, tasks) in enumerate(steps):
            logs = str(own / "logs" / str(number))
            LocalPipelineExecutor(
                pipeline, tasks=tasks, workers=min(CORES, tasks), logging_dir=logs
            ).run()
        sizes = [sum(1 for _ in path.open("rb")) for path in files(folder)]
        clusters = np.arange(sum(sizes))
        first: dict[int, int] = {}
        for number, start in enumerate(np.cumsum([0, *sizes[:-1]]).tolist()):
            path = own / "clusters" / f"{number:06d}.clusters"
            if path.exists():
                for index, name in np.fromfile(path, dtype="<u4").reshape(-1, 2).tolist():
                    clusters[start + index] = first.setdefault(name, start + index)
        shutil.rmtree(own)
        return clusters

    return run


def datasketch(folder: Path) -> Any:
    """Its bulk interface in two processes with the fastest hash there is for it, then its LSH, which
    runs in one; documents that it finds for each other are joined, none is compared."""
    import datasketch as peer

    paths = files(folder)

    def run() -> NDArray[np.int64]:
        with get_context("fork").Pool(CORES) as pool:
            hashes = np.concatenate(pool.map(datasketch_hashes, paths))
        minhashes = [peer.LeanMinHash(seed=SEED, hashvalues=row, scheme=SCHEME) for row in hashes]
        lsh = peer.MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, ROWS))
        for number, minhash in enumerate(minhashes):
            lsh.insert(number, minhash, check_duplication=False)
        parent = list(range(len(minhashes)))

        def find(member: int) -> int:
            while parent[member] != member:
                parent[member] = parent[parent[member]]
                member = parent[member]
            return member

        for number, minhash in enumerate(minhashes):
            for other in lsh.query(minhash):
                left, right = sorted((find(number), find(other)))
                parent[right] = left
        return np.array([find(member) for member in range(len(parent))])

    return run


def datasketch_hashes(path: Path) -> NDArray[np.uint32]:
    import xxhash
    from datasketch import MinHash

    sets = (shingles(text) for text in texts([path]))
    found = MinHash.generator(
        sets, num_perm=PERMUTATIONS, seed=SEED, scheme=SCHEME, hashfunc=xxhash.xxh32_intdigest
    )
    return np.array([minhash.hashvalues for minhash in found])


def shingles(text: str) -> set[bytes]:
    words = text.encode().split()
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return {b" ".join(words[start : start + SHINGLE_WORDS]) for start in range(last)}


if __name__ == "__main__":
    main()
