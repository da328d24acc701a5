"""Writes measured results into the documents: between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

python benchmarks/tables.py benchmarks/results/main_job.json README.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

COMMANDS = {"main_job": "python benchmarks/main_job.py"}


def table(document: dict[str, Any]) -> str:
    """Return the Markdown table of one benchmark's JSON."""
    name = document["benchmark"]
    quick = " --quick" if document["quick"] else ""
    where = f"{document['date']}, commit {document['commit']}, {document['machine']}"
    lines = [f"`{COMMANDS[name]}{quick}` ({where}):", "", "| figure | value | bar | holds | over |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for f in document["figures"]:
        holds = {None: "", True: "yes", False: "**no**"}[f["holds"]]
        lines.append(
            f"| {f['name'].replace('_', ' ')} | {f['value']:g} | {f['bar'] or ''} | {holds} | {f['over']} |"
        )
    return "\n".join(lines)


def insert(text: str, name: str, body: str) -> str:
    """Return `text` with the part between the marks of `name` replaced. Raises ValueError without marks."""
    pattern = re.compile(f"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    changed, count = pattern.subn(lambda m: f"{m[1]}{body}\n{m[2]}", text)
    if not count:
        raise ValueError(f"no marks <!-- {name}:begin --> and <!-- {name}:end -->")
    return changed


def main(results: str, *documents: str) -> None:
    """Insert the table of `results` into each document."""
    found = json.loads(Path(results).read_text().splitlines()[-1])
    for path in map(Path, documents):
        path.write_text(insert(path.read_text(), found["benchmark"], table(found)))


if __name__ == "__main__":
    main(*sys.argv[1:])
