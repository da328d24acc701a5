"""What the faces of this package cost: a row for each figure, beside its bar.

    python benchmarks/faces.py [--only console|page|ros|serve] [--quick] [--out out/faces]

Each group is a file of its own: `faces_console.py` the page in a browser, `faces_page.py` the reports,
`faces_ros.py` the messages and the action of ROS 2, `faces_serve.py` the OpenAI-compatible endpoint.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from figures import report

GROUPS = ("console", "page", "ros", "serve")


def main() -> int:
    """Run the chosen groups; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=GROUPS, action="append", help="group to run; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--out", type=Path, default=Path("out/faces"), help="folder of the result")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found = []
    for name in options.only or GROUPS:
        found += importlib.import_module(f"faces_{name}").figures(options.out, quick=options.quick)
    return report(found, options.out / "faces.json")


if __name__ == "__main__":
    sys.exit(main())
