"""A bag at its own rate to the real nodes, on this machine: cloud, VLM node, monitor, and the replay.

ros2 launch vlm_spec_decode replay.launch.py bag:=walks/monday rviz:=true

No robot takes part: the replay plays camera and executor, and refuses to begin where it finds one.
"""

from launch.actions import OpaqueFunction

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from vlm_spec_decode.ros.launch import LastOf, Values, declare, node, option, view, vsd
from vlm_spec_decode.ros.node_parameters import (
    CLOUD_PORT,
    DECODING,
    NAMESPACE,
    RVIZ,
    TARGET,
    Argument,
    parameter,
)

ARGUMENTS = (
    Argument("bag", "", "Bag to replay; empty: the one that ships with the package."),
    Argument("rate", "1.0", "Times the rate at which it was recorded."),
    Argument("instruction", "", "Given with the first frame; empty: what was said in the bag."),
    Argument("image_topic", "", "Camera topic of the bag; empty: found by type."),
    Argument("out", "out/live", "Folder of the bag that holds what the nodes say."),
    *DECODING,
    parameter("temperature"),
    parameter("seed"),
    TARGET,
    CLOUD_PORT,
    NAMESPACE,
    RVIZ,
)
CONFIG = "sim.yaml"


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Turn the arguments' values into processes."""
    value = Values.of(context, ARGUMENTS)
    address = f"tcp://127.0.0.1:{value.integer('cloud_port')}"
    vlm = value.subset("strategy", "objective", "draft") | {"cloud": address, "use_sim_time": True}
    vlm |= {"temperature": value.number("temperature"), "seed": value.integer("seed")}
    # RViz stays open when the replay has ended, so that what it shows can be looked at.
    ends = LastOf(("the replay", "RViz")) if value.flag("rviz") else None
    viewer = view(value, use_sim_time=True, on_exit=ends and ends.on_exit("RViz"))
    return [
        vsd("cloud", "cloud", "--bind", address, "--insecure", *option("--model", value.path("target"))),
        node("monitor_node", value, {"use_sim_time": True}, CONFIG),
        node("vlm_node", value, vlm, CONFIG),
        vsd("replay", "replay", "--live", *walk(value), on_exit=ends and ends.on_exit("the replay")),
        *viewer,
    ]


def walk(value: Values) -> list[str]:
    """Return the options of the replay."""
    options = [value.path("bag")] if value["bag"] else ["--sample"]
    options += ["--rate", str(value.number("rate")), *option("--out", value.path("out"))]
    for name in ("instruction", "image_topic", "namespace"):
        options += option(f"--{name.replace('_', '-')}", value[name])
    return options


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and what is started with them."""
    return LaunchDescription([*declare(ARGUMENTS), OpaqueFunction(function=bring_up)])
