"""A bag at its own rate to the real nodes, on this machine: cloud, VLM node, monitor, and the replay.

ros2 launch vlm_spec_decode replay.launch.py bag:=walks/monday rviz:=true

No robot takes part: the replay plays camera and executor, and refuses to begin where it finds one.
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
    ("bag", "", "Bag to replay; empty: the one that ships with the package."),
    ("rate", "1.0", "Times the rate at which it was recorded."),
    ("instruction", "", "Given with the first frame; empty: what was said in the bag."),
    ("image_topic", "", "Camera topic of the bag; empty: found by type."),
    ("out", "out/live", "Folder of the bag that holds what the nodes say."),
    ("strategy", "hybrid", "How edge and cloud decode together."),
    ("temperature", "0.0", "0 is greedy."),
    ("seed", "0", "Keys the noise of sampling."),
    ("target", "", "Folder or hub id of the cloud's model; empty: the one that ships."),
    ("draft", "", "Folder or hub id of the robot's model; empty: the one that ships."),
    ("cloud_port", "5557", "TCP port of the cloud on 127.0.0.1."),
    ("namespace", "", "Namespace of the nodes."),
    ("rviz", "false", "Also start rviz2 (of your ROS installation)."),
)


def bring_up(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Turn the arguments' values into processes."""
    value = {name: LaunchConfiguration(name).perform(context) for name, _, _ in ARGUMENTS}
    share = get_package_share_directory(PACKAGE)
    address = f"tcp://127.0.0.1:{value['cloud_port']}"
    vlm: dict[str, str | int | float | bool] = {
        "use_sim_time": True,
        "cloud": address,
        "strategy": value["strategy"],
        "draft": value["draft"],
        "temperature": float(value["temperature"]),
        "seed": int(value["seed"]),
    }
    model = ("--model", value["target"]) if value["target"] else ()
    processes: list[LaunchDescriptionEntity] = [
        vsd("cloud", "cloud", "--bind", address, "--insecure", *model),
        node("monitor_node", share, value, {"use_sim_time": True}),
        node("vlm_node", share, value, vlm),
        vsd("replay", "replay", "--live", *walk(value)),
    ]
    if value["rviz"].lower() in {"true", "1", "yes"}:
        view = ["-d", f"{share}/rviz/vlm.rviz", "--ros-args", "-p", "use_sim_time:=true"]
        processes.append(Node(package="rviz2", executable="rviz2", arguments=view))
    return processes


def walk(value: dict[str, str]) -> list[str]:
    """Return the options of the replay."""
    options = [value["bag"]] if value["bag"] else ["--sample"]
    for name in ("rate", "instruction", "image_topic", "out", "namespace"):
        if value[name]:
            options += [f"--{name.replace('_', '-')}", value[name]]
    return options


def vsd(name: str, *arguments: str) -> ExecuteProcess:
    """Run one of the package's own commands; its end ends everything."""
    program = ExecutableInPackage("vsd", PACKAGE)
    ending = Shutdown(reason=f"{name} ended")
    return ExecuteProcess(cmd=[program, *arguments], name=name, output="screen", on_exit=[ending])


def node(
    name: str, share: str, value: dict[str, str], parameters: dict[str, str | int | float | bool]
) -> Node:
    """Run one of the package's nodes under the bag's clock; its end ends everything."""
    # Without a type, launch would read a text such as "turn left: now" as YAML.
    typed = {key: ParameterValue(said, value_type=type(said)) for key, said in parameters.items()}
    return Node(
        package=PACKAGE,
        executable=name,
        name=name,
        namespace=value["namespace"],
        output="screen",
        parameters=[f"{share}/config/sim.yaml", typed],
        on_exit=[Shutdown(reason=f"{name} ended")],
    )


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and what is started with them."""
    declared = [DeclareLaunchArgument(n, default_value=d, description=text) for n, d, text in ARGUMENTS]
    return LaunchDescription([*declared, OpaqueFunction(function=bring_up)])
