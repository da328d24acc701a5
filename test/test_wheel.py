"""The wheel in an empty environment: no checkout in reach, and ten lines lead to tokens."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from test.test_packaging import NAME, build, source  # noqa: F401 - the fixture
from vlm_spec_decode import __version__

ROOT = Path(__file__).parents[1]
MAX_BYTES = 27_000_000
"""22 MB of it are models and the sample bag."""
DEVELOPMENT = ("benchmarks", "test", "examples")

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.net, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return build(source, tmp_path_factory.mktemp("wheel"), "build_wheel")


@pytest.fixture(scope="module")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone; what it depends on is borrowed from this one's site-packages.

    A path in a `.pth` file has its own `.pth` files ignored, so the checkout, which is installed here in
    editable form, is not in reach there.
    """
    uv = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    assert uv is not None
    folder = tmp_path_factory.mktemp("empty")
    (folder / "home").mkdir()
    environment, python = folder / "venv", folder / "venv" / "bin" / "python"
    run([uv, "venv", "--offline", "--quiet", "--python", sys.executable, str(environment)], folder)
    install = [uv, "pip", "install", "--offline", "--quiet", "--no-deps", "--python", str(python), str(wheel)]
    run(install, folder)
    (site,) = environment.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return folder


def environment_of(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"HOME": str(folder / "home"), "PATH": f"{folder}/venv/bin:{os.environ['PATH']}"}


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder / "home",
        env=environment_of(folder),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    return done.stdout


def test_the_wheel_is_small_and_holds_the_package_alone(wheel: Path) -> None:
    assert wheel.stat().st_size < MAX_BYTES
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
        size = sum(entry.file_size for entry in archive.infolist())
    stem = f"{NAME}-{__version__}"
    assert tops == {NAME, f"{stem}.dist-info", f"{stem}.data"}
    assert size < MAX_BYTES, "nor does it grow beyond that where it is unpacked"


def test_the_checkout_is_not_in_reach(empty: Path) -> None:
    code = (
        f"import importlib.util, json, sys, {NAME} as vsd;"
        "print(json.dumps([vsd.__file__, sys.path, importlib.util.find_spec('benchmarks') is None]))"
    )
    where, path, is_alone = json.loads(run(["python", "-c", code], empty))
    assert Path(where).is_relative_to(empty / "venv")
    assert str(ROOT) not in path
    assert is_alone


@pytest.fixture(scope="module")
def cloud(empty: Path) -> Iterator[str]:
    """A cloud of the wheel's own command, with keys in ~/keys of the empty environment."""
    run(["vsd", "keys", "keys"], empty)
    command = ["vsd", "cloud", "--bind", "tcp://127.0.0.1:*", "--keys", "keys", "--http", "off"]
    command[0] = str(empty / "venv" / "bin" / "vsd")
    with subprocess.Popen(
        command, cwd=empty / "home", env=environment_of(empty), stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"tcp://\S+", process.stdout.readline())
            assert found
            yield found[0]
        finally:
            process.terminate()


def test_the_ten_lines_of_the_readme_lead_to_tokens(empty: Path, cloud: str) -> None:
    """As they stand there, but for address, frame, robot and what it is told."""
    (lines,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(lines.splitlines()) <= 10
    assert 'keys="~/keys"' in lines
    shutil.copy(ROOT / "docs" / "images" / "frame.jpg", empty / "home")
    (found,) = re.findall(r'"(tcp://[^"]+)"', lines)
    for there, here in (
        (found, cloud),
        ('"go2", interface="eth0"', '"fake"'),
        ("go to the red chair", "walk forward 1 metre"),
    ):
        assert lines.count(there) == 1
        lines = lines.replace(there, here)
    said = run(["python", "-c", lines], empty)
    assert "Turn(angle_deg=-10.0)" in said, said
    assert "moving forward(1)" in said
    assert "ok . forward(1)" in said


def test_both_models_in_this_process_need_nothing_else(empty: Path) -> None:
    code = (
        f"import {NAME} as vsd\n"
        "with vsd.Engine.local() as engine:\n"
        "    print(len(engine.ask('walk to the blue box', 'frame.jpg').tokens))"
    )
    shutil.copy(ROOT / "docs" / "images" / "frame.jpg", empty / "home")
    assert int(run(["python", "-c", code], empty)) == 19


def test_a_program_that_forgets_to_close_ends_all_the_same(empty: Path, cloud: str) -> None:
    shutil.copy(ROOT / "docs" / "images" / "frame.jpg", empty / "home")
    code = (
        f"import {NAME} as vsd\n"
        f"engine = vsd.Engine.connect({cloud!r}, keys='~/keys')\n"
        "stream = engine.stream('walk to the blue box', 'frame.jpg'); print(next(stream).text)"
    )
    assert run(["python", "-c", code], empty).lstrip().startswith("blue box")
