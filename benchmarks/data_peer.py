"""What `datasets` makes of the same file: load, map the same template, write JSONL.

    python benchmarks/data_peer.py FILE OUT CACHE

It reads with two processes where it can, and checks nothing: it neither looks for broken lines, double
ids or hidden characters, nor keeps count of rows.
"""

from __future__ import annotations

import sys

from data_records import mapped


def main() -> None:
    import datasets

    file, out, cache = sys.argv[1:]
    datasets.disable_progress_bars()
    found = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
    made = found.map(
        lambda values: {"id": values["id"], "messages": mapped(values)},
        remove_columns=found.column_names,
        num_proc=2,
    )
    made.to_json(out, num_proc=2)


if __name__ == "__main__":
    main()
