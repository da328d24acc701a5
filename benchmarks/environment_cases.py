"""The cases of `hardening_environment.py`: what users' shells and hands give to every command and node.

A case is a command line, changes of the environment, and the exit codes that the docs give for it. Values are
those that other tools leave behind (Unitree's ROS 2 set-up, containers, notebooks) and slips of the hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Text = str | bytes

VSD, STOP, NODE = "vsd", "stop", "node"
"""A command; the e-stop, which must arrive; a node process."""

BYTES = b"walk to the ch\xffair"
NODES = ("camera_node", "console_node", "locomotion_node", "monitor_node", "vlm_node")


@dataclass(frozen=True, slots=True)
class Case:
    """One process: `kind`, its arguments, the environment's changes (None takes away) and good exit codes.

    `ends_by_itself` is false for a node that would run on: it gets SIGINT after a while.
    """

    name: str
    kind: str
    arguments: tuple[Text, ...]
    codes: tuple[int, ...]
    environment: Mapping[str, Text | None] = field(default_factory=dict)
    ends_by_itself: bool = True

    @property
    def wants_json(self) -> bool:
        """Whether its last line must be one JSON document."""
        return "--json" in self.arguments and "--help" not in self.arguments


def cases(folder: Path) -> list[Case]:
    """Return all cases; their files are made in `folder`."""
    files = _files(folder)
    found = [*_stops(files), *_nodes(files), *_rendering(folder), *_instructions(folder), *_bad_files(files)]
    return [*found, *_values(folder, files), *_help()]


def _files(folder: Path) -> dict[str, Path]:
    """Write the bad files; return them by what is wrong with them."""
    content: dict[str, bytes] = {
        "latin1.yaml": b"instruction: gehe zur T\xfcr\nrate_hz: 2\n",
        "binary.yaml": bytes(range(256)),
        "list.yaml": b"- a\n- b\n",
        "unclosed.yaml": b"a: [1, 2\n",
        "half.yaml": b'name: "\\uD800"\n',
        "date.yaml": b"when: 2024-13-45\n",
        "deep.yaml": b"[" * 4000,
        "key.yaml": b"? [1, 2]\n: 3\n",
        "empty.yaml": b"",
        "nan.yaml": b"length_m: .nan\nwidth_m: 6\n",
        "quoted.yaml": b"name: x\nrtt_ms: '20'\n",
        "unknown.yaml": b"insecure: true\nbinds: tcp://127.0.0.1:1\n",
        "cuda.yaml": b"insecure: true\ndevice: cuda:3\n",
        "garbage.xml": b"no xml at all",
        "other.xml": b"<html></html>",
        "picture.jpg": b"\xff\xd8\xff\xe0 not a picture",
        "empty.jpg": b"",
        "bag.mcap": b"\x89MCAP0\r\n garbage",
        "real.yaml": b"/**:\n  ros__parameters:\n    obstacle_stop_m: 1\n    autostart: false\n",
        "text.yaml": b"/**:\n  ros__parameters:\n    obstacle_stop_m: '1'\n",
        "flag.yaml": b"/**:\n  ros__parameters:\n    obstacle_stop_m: true\n",
        "many.yaml": b"/**:\n  ros__parameters:\n    obstacle_stop_m: [1.0, 2.0]\n",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    foreign = folder / "foreign" / "rclpy"
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").touch()
    (foreign / "_rclpy_pybind11.cpython-39-x86_64-linux-gnu.so").touch()
    keys = folder / "keys"
    (keys / "authorized").mkdir(parents=True)
    for name in ("cloud.key", "cloud.key_secret", "edge.key_secret"):
        (keys / name).write_bytes(b"\xff\xfe garbage")
    return {name: folder / name for name in (*content, "foreign", "keys")}


def _stops(files: dict[str, Path]) -> Iterator[Case]:
    """`vsd stop` under everything that a shell may hold: it arrives, or says by name why it cannot."""
    missing = "/nowhere/at/all"
    arrives: dict[str, Mapping[str, Text | None]] = {
        "nothing": {},
        "rmw cyclonedds": {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"},
        "rmw zenoh": {"RMW_IMPLEMENTATION": "rmw_zenoh_cpp"},
        "rmw nonsense": {"RMW_IMPLEMENTATION": "nonsense"},
        "rmw empty": {"RMW_IMPLEMENTATION": ""},
        "rmw asserted": {"RCL_ASSERT_RMW_ID_MATCHES": "rmw_cyclonedds_cpp"},
        "unitree's set-up": {
            "RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp",
            "CYCLONEDDS_URI": "file:///nowhere/cyclonedds.xml",
            "CYCLONEDDS_HOME": missing,
            "AMENT_PREFIX_PATH": "/opt/ros/nowhere",
        },
        "no home": {"HOME": None},
        "empty home": {"HOME": ""},
        "home of nobody": {"HOME": "/proc/nobody"},
        "log folder": {"ROS_LOG_DIR": "/proc/logs"},
        "log folder is a file": {"ROS_LOG_DIR": str(files["empty.yaml"])},
        "ros home": {"ROS_HOME": "/proc/ros"},
        "nowhere to write": {"ROS_LOG_DIR": "/proc/x", "HOME": "/proc/x", "TMPDIR": "/proc/x"},
        "range in lower case": {"ROS_AUTOMATIC_DISCOVERY_RANGE": "localhost"},
        "range nonsense": {"ROS_AUTOMATIC_DISCOVERY_RANGE": "nonsense"},
        "static peer": {"ROS_STATIC_PEERS": "robot.invalid"},
        "static peers": {"ROS_STATIC_PEERS": "127.0.0.1;robot.invalid;;"},
        "discovery server": {"ROS_DISCOVERY_SERVER": "no server"},
        "profiles missing": {"FASTRTPS_DEFAULT_PROFILES_FILE": missing},
        "profiles garbage": {"FASTRTPS_DEFAULT_PROFILES_FILE": str(files["garbage.xml"])},
        "profiles of others": {"FASTDDS_DEFAULT_PROFILES_FILE": str(files["other.xml"])},
        "transports": {"FASTDDS_BUILTIN_TRANSPORTS": "fast"},
        "publication mode": {"RMW_FASTRTPS_PUBLICATION_MODE": "sometimes"},
        "log to stdout": {"RCUTILS_LOGGING_USE_STDOUT": "yes"},
        "log in colour": {"RCUTILS_COLORIZED_OUTPUT": "always"},
        "log buffered": {"RCUTILS_LOGGING_BUFFERED_STREAM": "maybe"},
        "log format": {"RCUTILS_CONSOLE_OUTPUT_FORMAT": "{nothing}"},
        "log format escape": {"RCUTILS_CONSOLE_OUTPUT_FORMAT": "{message} \\x"},
        "security wanted": {"ROS_SECURITY_ENABLE": "true"},
        "a ROS of another Python": {"PYTHONPATH": str(files["foreign"])},
        "warnings are errors": {"PYTHONWARNINGS": "error"},
        "ascii": {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
        "a locale that is not there": {"LC_ALL": "xx_YY.UTF-8", "LANG": "xx_YY"},
        "a terminal without width": {"COLUMNS": "abc", "TERM": "nonsense"},
        "rendering": {"MUJOCO_GL": "nonsense", "PYOPENGL_PLATFORM": "glx"},
        "threads": {"OMP_NUM_THREADS": "many", "MKL_NUM_THREADS": "0"},
        "namespace of ROS 1": {"ROS_NAMESPACE": "go 2"},
        "proxy": {"http_proxy": "http://127.0.0.1:9", "https_proxy": "nonsense"},
        "a byte in a variable": {"ROS_HOSTNAME": b"go2\xff", "ROS_STATIC_PEERS": b"ro\xffbot"},
    }
    for name, environment in arrives.items():
        yield Case(f"stop: {name}", STOP, ("stop", "--json"), (0,), environment)
    for value in ("233", "-1", "abc", "1e2", "0x10", "²", "99999999999999999999"):
        yield Case(f"stop: domain {value}", VSD, ("stop", "--json"), (2,), {"ROS_DOMAIN_ID": value})
    enforced = {"ROS_SECURITY_ENABLE": "true", "ROS_SECURITY_STRATEGY": "Enforce"}
    yield Case("stop: security without keys", VSD, ("stop", "--json"), (2,), enforced)
    yield Case("stop: no namespace", VSD, ("stop", "--namespace", "go 2", "--json"), (2,))
    yield Case("stop: namespace bytes", VSD, ("stop", "--namespace", BYTES, "--json"), (2,))
    yield Case("stop: an argument too many", VSD, ("stop", "now", "--json"), (2,))


def _nodes(files: dict[str, Path]) -> Iterator[Case]:
    idle = ("--ros-args", "-p", "autostart:=false")
    shell: Mapping[str, Text | None] = {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}
    for name in NODES:
        yield Case(f"{name}: help", NODE, (name, "--help"), (0,))
        yield Case(f"{name}: rmw", NODE, (name, *idle), (0,), shell, False)
        yield Case(f"{name}: domain", NODE, (name, *idle), (2,), {"ROS_DOMAIN_ID": "300"})
        yield Case(f"{name}: no place for logs", NODE, (name, *idle), (0,), {"HOME": "/proc/x"}, False)
        yield Case(f"{name}: forgotten --ros-args", NODE, (name, "autostart:=false"), (2,))
        yield Case(f"{name}: bytes", NODE, (name, "--ros-args", "-p", b"source:=\xff"), (2,))
        yield Case(f"{name}: half a parameter", NODE, (name, "--ros-args", "-p", "autostart"), (2,))
        yield Case(f"{name}: text for a flag", NODE, (name, "--ros-args", "-p", "autostart:=7"), (2,))
        yield Case(f"{name}: missing file", NODE, (name, "--ros-args", "--params-file", "/nowhere"), (2,))
    for file, codes in (("real.yaml", (0,)), ("text.yaml", (2,)), ("flag.yaml", (2,)), ("many.yaml", (2,))):
        arguments = ("monitor_node", "--ros-args", "--params-file", str(files[file]))
        yield Case(f"monitor_node: {file}", NODE, arguments, codes, {}, codes != (0,))
    limits = ("locomotion_node", "--ros-args", "-p", f"limits_file:={files['latin1.yaml']}")
    yield Case("locomotion_node: limits in latin1", NODE, limits, (2,))
    wrong = ("locomotion_node", "--ros-args", "-p", "interface:=nope0")
    yield Case("locomotion_node: no such interface", NODE, wrong, (4,))
    device = ("vlm_node", "--ros-args", "-p", "draft:=shipped:draft,device=nonsense")
    yield Case("vlm_node: device", NODE, device, (1,))
    keys = ("vlm_node", "--ros-args", "-p", "cloud:=tcp://127.0.0.1:9", "-p", f"keys:={files['keys']}")
    yield Case("vlm_node: keys of garbage", NODE, keys, (2,))


def _rendering(folder: Path) -> Iterator[Case]:
    shells: dict[str, Mapping[str, str | None]] = {
        "egl left by others": {"PYOPENGL_PLATFORM": "egl"},
        "glx left by others": {"PYOPENGL_PLATFORM": "glx"},
        "nonsense left by others": {"PYOPENGL_PLATFORM": "nonsense"},
        "both differ": {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "egl"},
        "nothing": {"MUJOCO_GL": None, "PYOPENGL_PLATFORM": None},
        "empty": {"MUJOCO_GL": "", "PYOPENGL_PLATFORM": ""},
        "off": {"MUJOCO_GL": "off"},
        "glfw": {"MUJOCO_GL": "glfw"},
        "nonsense": {"MUJOCO_GL": "nonsense"},
        "capitals": {"MUJOCO_GL": "OSMesa"},
        "a display that is gone": {"MUJOCO_GL": None, "DISPLAY": ":77"},
        "egl device": {"MUJOCO_EGL_DEVICE_ID": "first"},
    }
    view = str(folder / "view.png")
    sim = ("sim", "--headless", "--actions", "wait(0.1)", "--view", view, "--json")
    for name, environment in shells.items():
        yield Case(f"sim: {name}", VSD, sim, (0,), environment)


def _instructions(folder: Path) -> Iterator[Case]:
    texts: dict[str, Text] = {
        "bytes": BYTES,
        "replaced": "walk\ufffd",
        "empty": "",
        "blank": " \t",
        "long": "a" * 9000,
    }
    for name, text in texts.items():
        yield Case(f"ask: {name}", VSD, ("ask", "--instruction", text, "--json"), (2,))
        yield Case(f"say: {name}", VSD, ("say", text, "--json"), (2,))
        demo = ("demo", "--instruction", text, "--out", str(folder / "demo"), "--json")
        yield Case(f"demo: {name}", VSD, demo, (2,))
    yield Case("ask: scene bytes", VSD, ("ask", "--instruction", "go", "--scene-text", BYTES, "--json"), (2,))
    yield Case("ask: history bytes", VSD, ("ask", "--instruction", "go", "--history", BYTES, "--json"), (2,))
    yield Case("sim: action bytes", VSD, ("sim", "--headless", "--actions", BYTES, "--json"), (1, 2))
    yield Case(
        "replay: instruction bytes", VSD, ("replay", "--sample", "--instruction", BYTES, "--json"), (2,)
    )


def _bad_files(files: dict[str, Path]) -> Iterator[Case]:
    yaml = [name for name in files if name.endswith(".yaml") and name not in ("real.yaml", "cuda.yaml")]
    for name in yaml[:10]:
        yield Case(f"sim: scene {name}", VSD, ("sim", "--scene", str(files[name]), "--json"), (2,))
        check = ("cloud", "--config", str(files[name]), "--check-config", "--json")
        # An empty file has no settings, and without keys nothing is served.
        yield Case(f"cloud: config {name}", VSD, check, (2,))
    for name in ("nan.yaml", "quoted.yaml", "latin1.yaml"):
        link = ("replay", "--sample", "--link", str(files[name]), "--json")
        yield Case(f"replay: link {name}", VSD, link, (2,))
    for name in ("latin1.yaml", "half.yaml", "date.yaml"):
        spoken = ("replay", "--sample", "--instructions", str(files[name]), "--json")
        yield Case(f"replay: instructions {name}", VSD, spoken, (2,))
    for name in ("picture.jpg", "empty.jpg", "binary.yaml"):
        ask = ("ask", "--instruction", "go", "--image", str(files[name]), "--json")
        yield Case(f"ask: image {name}", VSD, ask, (2,))
    for end, command in (("cloud", ("cloud", "--check-config")), ("ask", ("ask", "--instruction", "go"))):
        where = () if end == "cloud" else ("--cloud", "tcp://127.0.0.1:9")
        for name in ("keys", "foreign", "empty.yaml"):
            arguments = (*command, *where, "--keys", str(files[name]), "--json")
            yield Case(f"{end}: keys {name}", VSD, arguments, (2,))
    yield Case("replay: bag of garbage", VSD, ("replay", str(files["bag.mcap"]), "--json"), (2,))
    yield Case("replay: no bag", VSD, ("replay", "/nowhere", "--json"), (2,))
    yield Case("replay: bag bytes", VSD, ("replay", b"/no\xffwhere", "--json"), (2,))


def _values(folder: Path, files: dict[str, Path]) -> Iterator[Case]:
    for device in ("nonsense", "cuda:x", "tpu", "cuda:99"):
        check = ("cloud", "--insecure", "--device", device, "--check-config", "--json")
        yield Case(f"cloud: device {device}", VSD, check, (2,))
    check = ("cloud", "--config", str(files["cuda.yaml"]), "--check-config", "--json")
    yield Case("cloud: device in a file", VSD, check, (0, 2))
    for which in ("--draft", "--target"):
        ask = ("ask", "--instruction", "go", which, "shipped:draft,device=cuda:99", "--json")
        yield Case(f"ask: {which} on cuda:99", VSD, ask, (1,))
    for address in ("nonsense", "tcp://", "tcp://127.0.0.1:99999", "http://127.0.0.1:1", b"tcp://\xff:1"):
        bind = ("cloud", "--insecure", "--bind", address, "--check-config", "--json")
        yield Case(f"cloud: bind {address!r}", VSD, bind, (2,))
    fronts = ("front", "--insecure", "--check-config", "--json", "--clouds")
    yield Case("front: clouds", VSD, (*fronts, "nonsense"), (2,))
    yield Case("front: no clouds", VSD, fronts[:-1], (2,))
    yield Case("load: address", VSD, ("load", "--cloud", "nonsense", "--json"), (2,))
    yield Case("top: address", VSD, ("top", "--cloud", "nonsense", "--once", "--json"), (2,))
    yield Case("top: nobody", VSD, ("top", "--cloud", "http://127.0.0.1:9", "--once", "--json"), (3,))
    yield Case("keys: folder is a file", VSD, ("keys", str(files["empty.yaml"]), "--json"), (2,))
    yield Case("keys: unwritable", VSD, ("keys", "/proc/keys", "--json"), (2,))
    yield Case("keys: bytes", VSD, ("keys", str(folder).encode() + b"/ke\xffys", "--json"), (0, 2))
    yield Case(
        "keys: whatever the shell", VSD, ("keys", str(folder / "k"), "--json"), (0,), {"ROS_DOMAIN_ID": "x"}
    )
    yield Case("record: out exists", VSD, ("record", str(folder), "--duration", "1", "--json"), (1, 2))
    yield Case("record: unwritable", VSD, ("record", "/proc/bag", "--duration", "1", "--json"), (1, 2))
    yield Case("sim: interface", VSD, ("sim", "--interface", "nope0", "--json"), (2,))
    yield Case("sim: fault", VSD, ("sim", "--fault", "meteor", "--json"), (2,))
    yield Case("sim: domain", VSD, ("sim", "--domain", "233", "--json"), (2,))
    sit, fake = ("--instruction", "sit", "--json"), ("edge", "--robot", "fake")
    yield Case("edge: interface", VSD, ("edge", "--interface", "nope0", *sit), (4,))
    yield Case("edge: domain", VSD, ("edge", "--domain", "233", "--json"), (2,))
    yield Case("edge: robot", VSD, ("edge", "--robot", "spot", *sit), (2,))
    yield Case("edge: bytes", VSD, (*fake, "--instruction", BYTES, "--json"), (2,))
    yield Case("edge: limits", VSD, (*fake, "--limits", str(files["latin1.yaml"]), *sit), (2,))
    everywhere = ("serve", "--local", "--bind", "0.0.0.0:0")
    yield Case("serve: beyond loopback without a key", VSD, everywhere, (2,))
    yield Case("serve: address", VSD, ("serve", "nonsense"), (2,))
    yield Case("serve: no file of keys", VSD, ("serve", "--local", "--api-keys", "/nowhere"), (2,))
    yield Case("console: bind", VSD, ("console", "--robot", "fake", "--bind", "nonsense", "--json"), (2,))
    yield Case("console: tokens", VSD, ("console", "--robot", "fake", "--tokens", "/nowhere", "--json"), (2,))
    yield Case("console: robot", VSD, ("console", "--robot", "spot", "--json"), (2,))
    yield Case(
        "build-msgs: unwritable", VSD, ("build-msgs", "--wheels", str(files["empty.yaml"]), "--json"), (2,)
    )
    yield Case("bench: profile", VSD, ("bench", "--profiles", "nonsense", "--json"), (2,))
    yield Case("bench: out", VSD, ("bench", "--out", "/proc/x", "--answers", "1", "--json"), (1, 2))
    yield Case("train: device", VSD, ("train", "target", "--device", "nonsense", "--json"), (1, 2))
    yield Case("train: data", VSD, ("train", "target", "--data", "/nowhere", "--json"), (1, 2))
    yield Case("demo: out", VSD, ("demo", "--out", "/proc/x", "--json"), (1, 2))
    yield Case("demo: link", VSD, ("demo", "--link", str(files["latin1.yaml"]), "--json"), (2,))
    rmw: Mapping[str, Text | None] = {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp", "HOME": "/proc/x"}
    yield Case("doctor: unitree's set-up", VSD, ("doctor", "--json"), (0,), rmw)
    yield Case("doctor: domain", VSD, ("doctor", "--json"), (1,), {"ROS_DOMAIN_ID": "300"})
    yield Case("doctor: interface", VSD, ("doctor", "--interface", "nope0", "--json"), (1,))
    yield Case("no such command", VSD, ("walk", "--json"), (2,))
    yield Case("command bytes", VSD, (b"sto\xffp", "--json"), (2,))


def _help() -> Iterator[Case]:
    names = "ask bench build-msgs cloud console demo doctor edge keys load options-page record replay say "
    for name in (names + "serve sim stop top train").split():
        yield Case(f"{name}: help", VSD, (name, "--help"), (0,), {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
