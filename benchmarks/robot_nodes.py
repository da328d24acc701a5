"""The case of benchmarks/robot.py about the monitor node: the delay of its overlay."""

from __future__ import annotations

import io
import math
import statistics
import time
from array import array

from figures import Figure
from PIL import Image as PilImage
from rclpy.qos import qos_profile_sensor_data
from robot_bench import START_S, Bench
from robot_rig import cpu_s, until
from sensor_msgs.msg import CompressedImage

from vlm_spec_decode.core.types import Image
from vlm_spec_decode.ros.visualization import AnswerPiece, Caption, draw


def overlay(bench: Bench, count: int) -> list[Figure]:
    """Send frames at 10 Hz to the monitor node and take the time until their overlay is back."""
    node, back, sent = bench.operator.node, {}, {}
    bench.running["monitor_node"] = bench.processes.start(
        "monitor_node",
        ["-c", "import sys; from vlm_spec_decode.ros.entry_points import monitor_main as m; sys.exit(m())",
         "--ros-args", "-r", "__ns:=/view"],
    )  # fmt: skip
    frames = node.create_publisher(CompressedImage, "/view/camera/image_raw/compressed", 1)

    def take(message: CompressedImage) -> None:
        back.setdefault(message.header.frame_id, time.monotonic())

    node.create_subscription(CompressedImage, "/view/vlm/overlay/compressed", take, qos_profile_sensor_data)
    made = "/view/vlm/overlay/compressed"
    until(lambda: frames.get_subscription_count() and node.count_publishers(made), START_S, "monitor_node")
    jpeg, process = next(reversed(bench.operator.frames.values())), bench.pid("monitor_node")
    with PilImage.open(io.BytesIO(jpeg)) as opened:
        size = opened.size
    used_s = cpu_s(process)
    for index in range(count + 10):
        message = CompressedImage(format="jpeg", data=array("B", jpeg))
        message.header.frame_id = str(index)
        sent[message.header.frame_id] = time.monotonic()
        frames.publish(message)
        time.sleep(0.1)
    used_s = (cpu_s(process) - used_s) / (count + 10)
    bench.processes.stop(["monitor_node"])
    spent = sorted(back[key] - sent[key] for key in list(sent)[10:] if key in back)
    lost = count - len(spent)
    p95 = spent[math.ceil(0.95 * len(spent)) - 1] if lost <= count // 20 else math.inf
    middle = statistics.median(spent) if spent else math.inf
    note = (
        f"{count} frames of {size[0]}x{size[1]} at 10 Hz, {lost} lost; median {middle:.4f} s; "
        f"{1000 * used_s:.1f} ms of CPU a frame, {1000 * drawing_s(Image(jpeg, *size)):.1f} of them to draw"
    )
    return [Figure("overlay_p95_s", p95, 0.06, "at most", note)]


def drawing_s(image: Image, times: int = 30) -> float:
    """Return the processor time that one overlay takes to draw, measured on this thread."""
    caption = Caption(
        (AnswerPiece("i see a red box ahead . forward ( 1.2 ) ", "accepted"),) * 2, "acting", "hybrid"
    )
    draw(image, caption)
    began_s = time.thread_time()
    for _ in range(times):
        draw(image, caption)
    return (time.thread_time() - began_s) / times
