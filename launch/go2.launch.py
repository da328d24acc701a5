"""The four nodes on a robot's computer, towards a real Go2 and a cloud elsewhere.

    ros2 launch vlm_spec_decode go2.launch.py interface:=eth0 cloud:=tcp://10.0.0.2:5557 keys:=~/.vsd/keys

Needs cyclonedds 0.10.x: the nodes refuse to meet a real robot with 11.x, and say why.
"""

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

PACKAGE = "vlm_spec_decode"

REQUIRED = (
    ("interface", "Network interface towards the robot, such as eth0."),
    ("cloud", "Address of the verifier, such as tcp://10.0.0.2:5557."),
    ("keys", "Folder of CURVE keys: this robot's pair and the cloud's public key (`vsd keys`)."),
)
OPTIONAL = (
    ("domain", "0", "DDS domain of the robot."),
    ("driver", "sdk", "sdk or ros2: a Go2; cmd_vel: any robot that takes velocities and says its odometry."),
    ("scan_topic", "", "LaserScan that stops the robot, beside its own ranges; empty: none."),
    ("strategy", "hybrid", "How edge and cloud decode together."),
    ("objective", "latency", "What the cloud saves: latency, balanced or cost."),
    ("fallback", "hold", "Without the cloud: hold, stop or draft_only."),
    ("approve", "false", "Show every plan and wait for a yes on vlm/approve."),
    ("draft", "", "Folder or hub id of the robot's model; empty: the one that ships."),
    ("instruction", "", "Given as soon as everything is up; empty: none, publish one to vlm/instruction."),
    ("limits", "", "YAML of the safety gate's limits; empty: its defaults."),
    ("source", "robot", "Camera: robot, multicast, image:TOPIC, compressed:TOPIC, file:VIDEO or bag:FOLDER."),
    ("calibration", "", "Calibration YAML of the camera; empty: a pinhole of 100 deg."),
    ("namespace", "", "Namespace of the nodes."),
    ("frame_prefix", "", "Put before every frame, such as go2_a/, where several robots share /tf."),
    ("autostart", "true", "Configure and activate the nodes; false: a lifecycle manager does it."),
    ("respawn", "false", "Start a node that ends again after 2 s, instead of ending everything."),
    ("rviz", "false", "Also start rviz2 (of your ROS installation)."),
)


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Turn the arguments' values into processes."""
    names = [argument[0] for argument in REQUIRED + OPTIONAL]
    value = {name: LaunchConfiguration(name).perform(context) for name in names}
    share = get_package_share_directory(PACKAGE)
    robot = {"interface": value["interface"], "domain": int(value["domain"])}
    prefix = value["frame_prefix"]
    base = {"odom_frame": f"{prefix}odom", "base_frame": f"{prefix}base_link"}
    lens = f"{prefix}front_camera_optical"
    eye = {"calibration_file": value["calibration"], "source": value["source"], "frame_id": lens}
    legs = {name: value[name] for name in ("driver", "scan_topic")} | {"limits_file": value["limits"]}
    legs |= {"camera_frame": f"{prefix}front_camera", "optical_frame": lens}
    told = ("cloud", "keys", "strategy", "objective", "draft", "instruction", "fallback")
    vlm: dict[str, str | int] = {name: value[name] for name in told}
    vlm["approve"] = is_true(value["approve"])
    processes: list[LaunchDescriptionEntity] = [
        node("camera_node", share, value, robot | eye),
        node("locomotion_node", share, value, robot | base | legs),
        node("monitor_node", share, value, base),
        node("vlm_node", share, value, vlm),
    ]
    if is_true(value["rviz"]):
        processes.append(view(share, value))
    return processes


def node(name: str, share: str, value: dict[str, str], parameters: dict[str, str | int]) -> Node:
    """Run one of the package's nodes; its end ends everything, unless it is to come back."""
    shared: dict[str, str | int] = {"autostart": is_true(value["autostart"])}
    # Without a type, launch would read a text such as "turn left: now" as YAML.
    typed = {key: ParameterValue(said, value_type=type(said)) for key, said in (parameters | shared).items()}
    comes_back = is_true(value["respawn"])
    return Node(
        package=PACKAGE,
        executable=name,
        name=name,
        namespace=value["namespace"],
        output="screen",
        parameters=[f"{share}/config/go2.yaml", typed],
        respawn=comes_back,
        respawn_delay=2.0,
        on_exit=None if comes_back else [Shutdown(reason=f"{name} ended")],
    )


def view(share: str, value: dict[str, str]) -> Node:
    """Open RViz on this robot's topics and frames."""
    below = "/" + value["namespace"].strip("/") if value["namespace"] else ""
    seen = ("odom", "vlm/overlay/compressed", "vlm/markers", "vlm/path")
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", f"{share}/rviz/vlm.rviz", "-f", f"{value['frame_prefix']}odom"],
        remappings=[(f"/{topic}", f"{below}/{topic}") for topic in seen] if below else [],
    )


def is_true(said: str) -> bool:
    """Return what an argument means that is a yes or a no."""
    return said.lower() in {"true", "1", "yes"}


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and what is started with them."""
    declared = [DeclareLaunchArgument(name, description=text) for name, text in REQUIRED]
    declared += [DeclareLaunchArgument(n, default_value=d, description=text) for n, d, text in OPTIONAL]
    return LaunchDescription([*declared, OpaqueFunction(function=bring_up)])
