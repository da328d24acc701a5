"""The examples run as a reader runs them, from an empty folder, and the notebook cell by cell."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
PROGRAMS = sorted(path.name for path in FOLDER.glob("*.py"))
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
ANSWER = "blue box right 3 m . turn(-10) forward(1.5)"
SAID = {
    "01_ask.py": rf"{re.escape(ANSWER)}\nactions: Turn\(angle_deg=-10.0\) Forward\(distance_m=1.5\)\n",
    "02_stream.py": (
        # Where one pass ends and the next begins goes with the speed of this computer; that the first action
        # is told in an update before the second's does not. The last call is told with the answer's end.
        r"turn\(-10\)(?:(?: forward\([1.5]*)?\n  -> Turn\(angle_deg=-10.0\)\n[^)]*\)"
        r"| forward\(1\.5\)\n  -> Turn\(angle_deg=-10.0\)\n)\n  -> Forward"
    ),
    "05_new_strategy.py": r"same tokens: True\n$",
}
"""What the output must hold; of an example that is not named here, that it says something."""


def run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_runs_from_an_empty_folder(name: str, tmp_path: Path) -> None:
    said = run([str(FOLDER / name)], tmp_path)
    assert re.search(SAID.get(name, r"\S"), said), said
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_notebooks_cells_run_in_order(name: str) -> None:
    notebook = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["language_info"]["name"]) == (4, "python")
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    said = run(["-c", "\n".join(cells)], FOLDER)
    assert ANSWER in said
    assert "so far:  green chair" in said
    passes = dict(re.findall(r"^(\w+) +19 tokens in (\d+) passes", said, re.MULTILINE))
    # `hybrid` saves time, not passes.
    assert int(passes["autoregressive"]) > int(passes["speculative"]) > 0
    assert int(passes["autoregressive"]) > int(passes["hybrid"]) > 0
    assert "nobody listens at 127.0.0.1:" in said


@contextmanager
def shipped_cloud(folder: Path, port: int) -> Iterator[str]:
    """Run `vsd cloud` with keys until the block ends."""
    vsd = [sys.executable, "-m", "vlm_spec_decode.cli"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    address = f"tcp://127.0.0.1:{port}"
    subprocess.run([*vsd, "keys", str(folder / "keys")], env=environment, check=True, capture_output=True)
    command = [*vsd, "cloud", "--bind", address, "--keys", str(folder / "keys"), "--http", "off"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "serving" in process.stdout.readline()
            yield address
        finally:
            process.terminate()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.net
def test_the_stream_from_a_cloud_is_the_one_from_here(tmp_path: Path, free_tcp_port: int) -> None:
    with shipped_cloud(tmp_path, free_tcp_port) as address:
        far = run([str(FOLDER / "02_stream.py"), address, str(tmp_path / "keys")], tmp_path)
    assert ANSWER in " ".join(re.sub(r"\n  -> .*\n", "", far).split())
    up = int(re.search(r"(\d+) bytes up", far)[1])  # type: ignore[index]
    assert up > 0


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.net
def test_the_lines_of_the_readme_run_from_a_cloud_to_a_robot(tmp_path: Path, free_tcp_port: int) -> None:
    """As they stand there, but for addresses: a cloud and keys of this test, and the robot of arithmetic."""
    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "frame.jpg").symlink_to(ROOT / "docs" / "images" / "frame.jpg")
    with shipped_cloud(tmp_path, free_tcp_port) as address:
        for theirs, ours in (
            ('"tcp://10.0.0.2:5557"', f'"{address}"'),
            ('"~/keys"', '"keys"'),
            ('"go2", interface="eth0"', '"fake"'),
            ('"go to the red chair"', '"walk forward 1 metre"'),
        ):
            assert block.count(theirs) == 1
            block = block.replace(theirs, ours)
        said = run(["-c", f"{block}print(result)"], tmp_path)
    assert f"{ANSWER}" in said
    # How many tokens, and so actions, an update has depends on the link.
    assert re.findall(r"Turn\(angle_deg=-10\.0\)|Forward\(distance_m=1\.5\)", said) == [
        "Turn(angle_deg=-10.0)",
        "Forward(distance_m=1.5)",
    ]
    assert "status='done'" in said.splitlines()[-1]
    assert "actions=('forward(1)', 'done()')" in said.splitlines()[-1]


def test_every_example_that_a_page_names_is_there() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    named = {name for page in pages for name in re.findall(r"examples/(\w+\.\w+)", page.read_text())}
    assert named <= {*PROGRAMS, *NOTEBOOKS}
    assert len(PROGRAMS) >= 3
