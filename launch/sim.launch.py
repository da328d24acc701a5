"""Everything on this machine: simulated Go2, cloud, and the four nodes.

ros2 launch vlm_spec_decode sim.launch.py instruction:="walk to the red ball" rviz:=true
"""

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import ExecutableInPackage

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity

PACKAGE = "vlm_spec_decode"

ARGUMENTS = (
    ("scene_seed", "0", "Seed of the random room."),
    ("scene", "", "YAML file of a room; empty: a random one from scene_seed."),
    ("instruction", "", "Given as soon as everything is up; empty: none, publish one to vlm/instruction."),
    ("strategy", "hybrid", "How edge and cloud decode together."),
    ("objective", "latency", "What the cloud saves: latency, balanced or cost."),
    ("fallback", "hold", "Without the cloud: hold, stop or draft_only."),
    ("approve", "false", "Show every plan and wait for a yes on vlm/approve."),
    ("target", "", "Folder or hub id of the cloud's model; empty: the one that ships."),
    ("draft", "", "Folder or hub id of the robot's model; empty: the one that ships."),
    ("limits", "", "YAML of the safety gate's limits; empty: its defaults."),
    ("keys", "", "Folder of CURVE keys, made with `vsd keys`; empty: plaintext on loopback."),
    ("cloud_port", "5557", "TCP port of the cloud on 127.0.0.1."),
    ("dds_domain", "1", "DDS domain of the simulated robot (not the ROS domain)."),
    ("namespace", "", "Namespace of the nodes."),
    ("frame_prefix", "", "Put before every frame, such as go2_a/, where several robots share /tf."),
    ("autostart", "true", "Configure and activate the nodes; false: a lifecycle manager does it."),
    ("respawn", "false", "Start a node that ends again after 2 s, instead of ending everything."),
    ("rviz", "false", "Also start rviz2 (of your ROS installation)."),
)


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Turn the arguments' values into processes."""
    value = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    share = get_package_share_directory(PACKAGE)
    address = f"tcp://127.0.0.1:{value['cloud_port']}"
    robot = {"interface": "lo", "domain": int(value["dds_domain"])}
    cloud = {"cloud": address, "keys": value["keys"]}
    prefix = value["frame_prefix"]
    base = {"odom_frame": f"{prefix}odom", "base_frame": f"{prefix}base_link"}
    lens = f"{prefix}front_camera_optical"
    legs = {"limits_file": value["limits"], "camera_frame": f"{prefix}front_camera", "optical_frame": lens}
    told = ("strategy", "objective", "draft", "instruction", "fallback")
    vlm: dict[str, str | int] = {name: value[name] for name in told}
    vlm["approve"] = is_true(value["approve"])
    processes: list[LaunchDescriptionEntity] = [
        vsd("simulator", "sim", *room(value), "--interface", "lo", "--domain", value["dds_domain"]),
        vsd("cloud", "cloud", "--bind", address, *model(value), *security(value)),
        node("camera_node", share, value, robot | {"frame_id": lens}),
        node("locomotion_node", share, value, robot | base | legs),
        node("monitor_node", share, value, base),
        node("vlm_node", share, value, cloud | vlm),
    ]
    if is_true(value["rviz"]):
        processes.append(view(share, value))
    return processes


def room(value: dict[str, str]) -> tuple[str, ...]:
    """Return the simulator's options for the room."""
    return ("--scene", value["scene"]) if value["scene"] else ("--scene-seed", value["scene_seed"])


def model(value: dict[str, str]) -> tuple[str, ...]:
    """Return the cloud's option for its model."""
    return ("--model", value["target"]) if value["target"] else ()


def security(value: dict[str, str]) -> tuple[str, ...]:
    """Return the cloud's options for its keys; plaintext never leaves this machine."""
    return ("--keys", value["keys"]) if value["keys"] else ("--insecure",)


def vsd(name: str, *arguments: str) -> ExecuteProcess:
    """Run one of the package's own commands; its end ends everything."""
    program = ExecutableInPackage("vsd", PACKAGE)
    ending = Shutdown(reason=f"{name} ended")
    return ExecuteProcess(cmd=[program, *arguments], name=name, output="screen", on_exit=[ending])


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
        parameters=[f"{share}/config/sim.yaml", typed],
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
    declared = [DeclareLaunchArgument(n, default_value=d, description=text) for n, d, text in ARGUMENTS]
    return LaunchDescription([*declared, OpaqueFunction(function=bring_up)])
