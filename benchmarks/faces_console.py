"""The console in a real Chromium against its bars: bytes, first view, video, accessibility, stops, idle CPU.

Stops and lost pages are timed at the simulated robot: `vsd sim` in a process of its own, on DDS over
loopback, says in its log when its service was called. CPU is that of the console's process.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from figures import ROOT, Figure
from PIL import Image as PilImage
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(ROOT))

from test.serve.console_rig import COMMANDER, rig
from test.serve.test_console_page import DESKTOP, PHONE, PIECES
from vlm_spec_decode.core.types import Image
from vlm_spec_decode.serve.console.app import static_files

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FRAME_PX = (640, 360)
VIDEO_S = 8.0
START_S = 120.0
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
"""In ms since the address was given."""


def figures(_out: Path, *, quick: bool) -> list[Figure]:
    """Measure all."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        try:
            found = [*page_figures(browser), *video(browser), *accessibility(browser)]
            found += lost_pages(browser, 10 if quick else 50)
            found += stops(browser, 20 if quick else 100)
        finally:
            browser.close()
    return [*found, *idle(), *node_idle()]


def opened(browser: Browser, link: str, **options: Any) -> Page:
    """Return a connected page."""
    page = browser.new_context(viewport=DESKTOP, **options).new_page()
    page.goto(link)
    page.wait_for_selector("#chip-page.good")
    return page


def page_figures(browser: Browser) -> Iterator[Figure]:
    """Yield the page's size, and the times from the address to what is drawn first, and to a connection."""
    size = sum(len(each.data) for each in static_files().values())
    yield Figure("console, bytes of the page", size, 400_000, "at most", "not compressed")
    times, drawn = [], []
    with rig(["done()"]) as served:
        for _ in range(7):
            page = browser.new_context(viewport=DESKTOP).new_page()
            began_s = time.monotonic()
            page.goto(served.link())
            page.wait_for_selector("#chip-page.good")
            times.append(time.monotonic() - began_s)
            drawn.append(page.evaluate(FIRST_PAINT) / 1e3)
            page.context.close()
    note = f"the page with its stop, median of {len(drawn)}; worst {max(drawn):.2f}"
    yield Figure("console, first paint (s)", statistics.median(drawn), 1.0, "at most", note)
    note = f"to a connected page, median of {len(times)}, with an empty cache; worst {max(times):.2f}"
    yield Figure("console, first view (s)", statistics.median(times), 1.0, "at most", note)


def moving_pictures() -> list[Image]:
    """Return pictures of a camera's size and weight, each another one."""
    found = []
    for number in range(12):
        noise = PilImage.effect_noise(FRAME_PX, 40 + number).convert("RGB")
        buffer = io.BytesIO()
        noise.resize((160, 90)).resize(FRAME_PX).save(buffer, "JPEG", quality=85)
        found.append(Image(buffer.getvalue(), *FRAME_PX))
    return found


@contextmanager
def console_process() -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Run this file's own server, a console on a fake robot; yield the process and its links."""
    command = [sys.executable, __file__, "serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def serve() -> None:
    """Serve a console whose camera costs nothing, so that what is measured is the console."""
    pictures, number = moving_pictures(), 0

    def take() -> tuple[Image, float]:
        nonlocal number
        number += 1
        return pictures[number % len(pictures)], time.monotonic()

    with rig(["walk. forward(2) ", "…"], capture=take) as served:
        print(json.dumps({"command": served.link(), "jpeg_bytes": str(len(pictures[0].jpeg))}), flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


def video(browser: Browser) -> Iterator[Figure]:
    """Yield frames a second that one page shows with a plan over them, and what they cost the server."""
    with console_process() as (process, links):
        page = opened(browser, links["command"])
        page.uncheck("#approve-first")
        page.fill("#instruction", "go to the red ball")
        page.press("#instruction", "Enter")
        page.wait_for_selector("#plan li")
        time.sleep(1.0)
        begin, cpu = shown(page), cpu_s(process.pid)
        time.sleep(VIDEO_S)
        frames, used = shown(page) - begin, cpu_s(process.pid) - cpu
        page.context.close()
        note = (
            f"{FRAME_PX[0]}x{FRAME_PX[1]}, {int(links['jpeg_bytes']) // 1000} kB each, a plan drawn over it"
        )
        yield Figure("console, video (frames/s)", frames / VIDEO_S, 12, "at least", note)
        told = "robot, mission and server in one process, which also reads the camera"
        yield Figure("console, video (cores)", used / VIDEO_S, 0.25, "at most", told)


def shown(page: Page) -> int:
    """Return how many pictures a page has shown."""
    return int(page.get_attribute("#video", "data-shown") or 0)


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def accessibility(browser: Browser) -> Iterator[Figure]:
    """Yield what axe finds on four views, in light and dark, on desktop and phone."""
    from axe_playwright_python.sync_playwright import Axe

    found: list[str] = []
    runs = 0
    for size in (DESKTOP, PHONE):
        for scheme in ("light", "dark"):
            with rig(["ahead. forward(0.3) done()"]) as served:
                page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
                page.goto(served.link())
                page.wait_for_selector("#chip-page.good")
                served.edge.state.on_tokens(1, PIECES)
                for view in views(page):
                    runs += 1
                    violations = Axe().run(page).response["violations"]
                    found += [f"{view}: {each['id']}" for each in violations]
                page.context.close()
    yield Figure("console, axe violations", len(found), 0, "at most", f"{runs} views {found or ''}")


def views(page: Page) -> Iterator[str]:
    """Bring a page to each of its views."""
    page.wait_for_selector("#tokens .drafted")
    yield "live"
    page.fill("#instruction", "go to the red ball")
    page.press("#instruction", "Enter")
    page.wait_for_selector("#decision:not([hidden])")
    yield "a plan waits"
    page.keyboard.press("Escape")
    page.wait_for_selector("#release:not([hidden])")
    yield "stopped"
    page.click("#missions button")
    page.wait_for_selector("#replay-bar:not([hidden])")
    yield "replay"


def lost_pages(browser: Browser, tries: int) -> Iterator[Figure]:
    """Yield the time from the loss of a page that drives to the stop at the robot's driver.

    Half of the pages are closed, as a browser that ends; the other half fall silent with their connection
    open, as a phone out of reach: their timer is stopped.
    """
    times = []
    with rig(["done()"]) as served:
        for number in range(tries):
            page = opened(browser, served.link())
            page.check("#key-drive")
            page.keyboard.down("w" if number % 4 < 2 else "s")  # to and fro
            wait_for(lambda: served.robot.source == "teleop" and served.speed_mps > 0.1)
            served.stops_s.clear()
            began_s = time.monotonic()
            if number % 2:
                page.close()
            else:
                page.evaluate("for (let timer = 0; timer < 1000; timer += 1) clearInterval(timer)")
            wait_for(lambda: served.stops_s)
            times.append(served.stops_s[0] - began_s)
            page.context.close()
            wait_for(lambda: served.robot.source == "none")
    within = sum(each <= 0.5 for each in times)
    note = f"half closed, half silent; median {statistics.median(times):.3f} s, worst {max(times):.3f} s"
    yield Figure("console, lost pages stopped", within, tries, "at least", f"of {tries} within 0.5 s; {note}")


def wait_for(is_true: Any, within_s: float = 15.0) -> None:
    """Wait until something is true."""
    until_s = time.monotonic() + within_s
    while not is_true():
        if time.monotonic() > until_s:
            raise TimeoutError("what was waited for has not come")
        time.sleep(0.001)


def stops(browser: Browser, tries: int) -> Iterator[Figure]:
    """Yield the time from the space bar to the stop at the robot's DDS service, decoding and video running.

    `vsd sim`, `vsd cloud` and `vsd console` are processes of their own; the key is pressed by the browser.
    The simulator stamps every call of StopMove by the clock that all processes share.
    """
    with stack() as (links, calls):
        page = opened(browser, links["command"])
        page.wait_for_selector("#chip-cloud.good", timeout=START_S * 1e3)
        page.uncheck("#approve-first")
        times = []
        for number in range(tries):
            page.fill("#instruction", "look for the green box")
            page.press("#instruction", "Enter")
            page.wait_for_selector("#status-line:has-text('answering')", timeout=20_000)
            page.evaluate("document.activeElement.blur()")
            seen = len(calls())
            began_s = time.monotonic()
            page.keyboard.press("Space") if number % 2 else page.click("#stop")
            wait_for(lambda seen=seen: len(calls()) > seen)
            times.append(calls()[seen] - began_s)
            page.click("#release", timeout=10_000)
            page.wait_for_selector("#release", state="hidden")
        page.context.close()
    times.sort()
    worst = times[min(len(times) - 1, math.ceil(0.99 * len(times)) - 1)]
    note = f"{tries} stops, button and space bar in turn; median {1e3 * statistics.median(times):.0f} ms"
    yield Figure("console, stop p99 (ms)", 1e3 * worst, 120, "at most", note)


@contextmanager
def stack() -> Iterator[tuple[dict[str, str], Any]]:
    """Run simulator, cloud and console; yield the console's links, and what reads the calls of StopMove."""
    folder = Path(tempfile.mkdtemp(prefix="console-stack-"))
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, *(("-c", code) if code else ("-m", "vlm_spec_decode.cli")), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        started.append(process)
        return process

    def ready(process: subprocess.Popen[str]) -> dict[str, str]:
        assert process.stdout is not None
        return dict(json.loads(process.stdout.readline()))

    log = folder / "stops"
    service = "SportService.call"
    log.touch()
    try:
        # The simulator as it is, with a stamp in front of its handler of StopMove.
        stamped = (
            "import sys, time, vlm_spec_decode.sim.go2.services as s\n"
            f"log = open({str(log)!r}, 'a', buffering=1)\n"
            f"plain = s.{service}\n"
            "def call(self, api_id, *rest):\n"
            "    if api_id == 1003: log.write(f'{time.monotonic()}\\n')\n"
            "    return plain(self, api_id, *rest)\n"
            f"s.{service} = call\n"
            "from vlm_spec_decode.cli.__main__ import run\nrun()\n"
        )
        domain = ("--domain", "3", "--interface", "lo")
        simulator = start(stamped, "sim", *domain, "--start", "standing", "--json")
        cloud = start("", "cloud", "--bind", "tcp://127.0.0.1:*", "--insecure", "--json")
        address = ready(cloud)["address"]
        ready(simulator)
        console = start(
            "", "console", "--robot", "sim", *domain, "--cloud", address, "--bind", "127.0.0.1:0", "--json"
        )
        yield ready(console), lambda: [float(line) for line in log.read_text().split()]
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def idle() -> Iterator[Figure]:
    """Yield what the console's own process costs while nothing happens, with a page open and without."""
    with console_process() as (process, links), sync_playwright() as started:
        time.sleep(2.0)
        cpu = cpu_s(process.pid)
        time.sleep(VIDEO_S)
        closed = (cpu_s(process.pid) - cpu) / VIDEO_S
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = opened(browser, links["command"])
        time.sleep(2.0)
        cpu = cpu_s(process.pid)
        time.sleep(VIDEO_S)
        is_open = (cpu_s(process.pid) - cpu) / VIDEO_S
        page.context.close()
        browser.close()
    told = "`vsd console` with executor and camera in one process"
    yield Figure("console, idle closed (cores)", closed, 0.15, "at most", told)
    yield Figure("console, idle open (cores)", is_open, 0.35, "at most", f"{told}, video running")


def node_idle() -> Iterator[Figure]:
    """Yield what `console_node` adds to idle nodes, whose topics are published here at their rates."""
    import rclpy

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=77)
    node = rclpy.create_node("console_bench", context=context)
    publish = idle_topics(node)
    with tempfile.NamedTemporaryFile("w", suffix=".tokens") as tokens:
        tokens.write(f"bench {COMMANDER} command\n")
        tokens.flush()
        code = (
            "import sys; from vlm_spec_decode.ros.entry_points import console_main; sys.exit(console_main())"
        )
        given = ("--ros-args", "-p", "bind:=127.0.0.1:18477", "-p", f"tokens:={tokens.name}")
        environment = {**os.environ, "ROS_DOMAIN_ID": "77"}
        process = subprocess.Popen([sys.executable, "-c", code, *given], cwd=ROOT, env=environment)
        try:
            wait_for(lambda: publish() or node.count_subscribers("vlm/plan/status"), 60.0)
            publish_for(publish, 3.0)
            closed = used(process.pid, publish)
            with sync_playwright() as started:
                browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
                page = opened(browser, f"http://127.0.0.1:18477/#token={COMMANDER}")
                publish_for(publish, 3.0)
                is_open = used(process.pid, publish)
                page.context.close()
                browser.close()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
            node.destroy_node()
            rclpy.shutdown(context=context)
    told = "console_node alone, beside idle nodes; the bar is that of all nodes together"
    yield Figure("console_node, closed (cores)", closed, 0.15, "at most", told)
    yield Figure("console_node, open (cores)", is_open, 0.35, "at most", f"{told}; camera at 5 Hz shown")


def idle_topics(node: Any) -> Any:
    """Return what publishes, when it is called often enough, what idle nodes publish in that time."""
    from nav_msgs.msg import Odometry
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CompressedImage

    from vlm_spec_decode.ros.convert import to_compressed
    from vlm_spec_decode.ros.middleware import COMMAND
    from vlm_spec_decode_msgs import msg

    picture = to_compressed(moving_pictures()[0], 1.0, "camera")
    sources = [
        (0.1, node.create_publisher(msg.PlanStatus, "vlm/plan/status", COMMAND), msg.PlanStatus(state=1)),
        (0.05, node.create_publisher(Odometry, "odom", 20), Odometry()),
        (
            0.2,
            node.create_publisher(CompressedImage, "camera/image_raw/compressed", qos_profile_sensor_data),
            picture,
        ),
    ]
    due = [0.0] * len(sources)

    def publish() -> None:
        now_s = time.monotonic()
        for index, (period_s, publisher, message) in enumerate(sources):
            if now_s >= due[index]:
                due[index] = now_s + period_s
                publisher.publish(message)

    return publish


def publish_for(publish: Any, duration_s: float) -> None:
    """Publish for some seconds."""
    until_s = time.monotonic() + duration_s
    while time.monotonic() < until_s:
        publish()
        time.sleep(0.005)


def used(pid: int, publish: Any) -> float:
    """Return the cores that a process uses while the topics are published."""
    before = cpu_s(pid)
    publish_for(publish, VIDEO_S)
    return (cpu_s(pid) - before) / VIDEO_S


if __name__ == "__main__" and sys.argv[1:] == ["serve"]:
    serve()
