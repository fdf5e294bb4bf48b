"""Rows of a bench on disk: one JSON line for each name and seed, appended as they come and never run again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A bench whose rows are kept in a file."""

    results: Path
    key: str
    """What a row's name is called in it; its seed is `seed`."""
    names: Sequence[str]
    seeds: Callable[[str], Sequence[int]]
    """Seeds of a name, unless others are asked for."""
    run: Callable[[str, int], Row]
    table: Callable[[list[Row]], str]

    def known(self) -> list[Row]:
        """The rows that are there."""
        return [json.loads(line) for line in self.results.read_text().splitlines()] if self.results.is_file() else []

    def main(self, description: str | None) -> None:
        """Run what is missing, as the command line asks, then print the table."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--only", nargs="*", choices=self.names, default=self.names)
        parser.add_argument("--seeds", type=int, nargs="*")
        parser.add_argument("--table", action="store_true", help="print the rows that are there")
        options = parser.parse_args()
        done = {(row[self.key], row["seed"]) for row in self.known()}
        wanted = [(name, seed) for name in options.only for seed in options.seeds or self.seeds(name)]
        for name, seed in wanted if not options.table else ():
            if (name, seed) not in done:
                self.results.parent.mkdir(exist_ok=True)
                line = json.dumps(self.run(name, seed))
                with self.results.open("a") as results:
                    results.write(line + "\n")
                print(line, flush=True)
        print(self.table(self.known()))


def spread(values: Iterable[float]) -> str:
    """Mean and standard deviation of the seeds; empty without any."""
    numbers = list(values)
    if not numbers:
        return ""
    return f"{mean(numbers):.3f}" + (f" ± {stdev(numbers):.3f}" if len(numbers) > 1 else "")


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
