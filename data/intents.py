"""Take some intents out of Banking77, for profiles/gemma-270m.yaml.

    python data/intents.py FOLDER

FOLDER holds the published train.csv and test.csv, each with the columns text and category (Casanueva et
al. 2020, CC BY 4.0).  Writes the rows of the first 20 intents in alphabetical order to
data/raw/intents/train.csv and test.csv, unchanged and in their order.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

COLUMNS = ["text", "category"]
FILES = ("train.csv", "test.csv")


def select(folder: Path, out: Path, count: int) -> dict[str, int]:
    """Copy the rows of so many intents. Returns the rows written by file.

    Raises:
        SystemExit: when the folder does not hold Banking77.
    """
    tables = {name: _read(folder / name) for name in FILES}
    intents = sorted({row["category"] for row in tables["train.csv"]})[:count]
    out.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, rows in tables.items():
        kept = [row for row in rows if row["category"] in intents]
        with (out / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        written[name] = len(kept)
    return written


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except OSError as error:
        raise SystemExit(
            f"{path} cannot be read ({error.strerror}); name Banking77's folder"
        ) from None
    if reader.fieldnames != COLUMNS:
        raise SystemExit(f"{path} has the columns {reader.fieldnames}, not {COLUMNS}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Take some intents out of Banking77.")
    parser.add_argument("folder", type=Path, help="with train.csv and test.csv")
    parser.add_argument("--out", type=Path, default=Path("data/raw/intents"))
    parser.add_argument("--intents", type=int, default=20)
    options = parser.parse_args()
    for name, rows in select(options.folder, options.out, options.intents).items():
        print(f"{options.out / name}: {rows} rows")


if __name__ == "__main__":
    main()
