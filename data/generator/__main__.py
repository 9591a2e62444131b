"""Command line: `python -m data.generator --out data/raw`."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from random import Random

from data.generator import corpus, general, preferences, readme, shipments
from data.generator.faults import dumps
from data.generator.messages import Desk
from data.generator.similarity import Novelty

SEED = 20260706
# Well under the 0.6 at which a near-duplicate search may start to ask questions.
TOO_CLOSE = 0.5


def files() -> dict[str, bytes]:
    """Name and content of every file."""
    novelty = Novelty(TOO_CLOSE)

    # A stream for each file: more rows in one leave the random choices of the others alone.
    def desk(offset: int) -> tuple[Random, Desk]:
        rng = Random(SEED + offset)
        return rng, Desk(rng, novelty)

    entries = shipments.make(*desk(0))
    pairs = preferences.make(*desk(1), entries)
    documents = corpus.make(*desk(2))
    questions = general.make(Random(SEED + 3))
    page = readme.write(entries, pairs, documents, questions)
    return {
        "shipments.jsonl": _lines(entry.render() for entry in entries),
        "preferences.jsonl": _lines(
            dumps(pair.row(number)).encode() for number, pair in enumerate(pairs, start=1)
        ),
        "corpus.jsonl": _lines(dumps(row).encode() for row in documents),
        "general.jsonl": _lines(dumps(row).encode() for row in questions),
        "README.md": page.encode(),
    }


def _lines(rendered: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in rendered)


def main() -> None:
    """Write all files into one folder."""
    parser = argparse.ArgumentParser(
        prog="python -m data.generator",
        description="Write the example data of the Norden Freight desk.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the files to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (out / name).write_bytes(content)
        print(f"{out / name}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
