"""The latest rows of results/benchmarks.csv as Markdown tables, for docs/.

python benchmarks/report.py [--question=sampler]
"""

import argparse
import csv

from harness import RESULTS

from studies.reporting import markdown

COLUMNS = {
    "case": "case",
    "way": "way",
    "seconds": "seconds",
    "ratio": "ratio",
    "ratio_range": "range",
    "peak_mb": "peak, MB",
    "peak_ratio": "ratio",
    "compile_s": "compilation, s",
    "error": "difference",
    "note": "",
}


def latest(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The last row of each way in each case, in order of first appearance."""
    found = {}
    for row in rows:
        found[row["question"], row["case"], row["way"]] = row
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--question", help="default: all")
    question = parser.parse_args().question
    with RESULTS.open(newline="") as file:
        rows = latest(list(csv.DictReader(file)))
    for name in dict.fromkeys(row["question"] for row in rows):
        if question in (None, name):
            shown = [row for row in rows if row["question"] == name]
            lines = [[row[column] for column in COLUMNS] for row in shown]
            commits = ", ".join(dict.fromkeys(row["commit"] for row in shown))
            print(f"{name} ({commits})\n\n{markdown(list(COLUMNS.values()), lines)}\n")


if __name__ == "__main__":
    main()
