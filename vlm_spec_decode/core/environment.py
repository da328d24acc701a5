"""Everything that our libraries read from the environment: one list, checked before they read it.

A variable that another tool has set must not end a program of ours without a message, the e-stop least of
all. So each entry names the readers of the variable, its valid values, and the treatment of an invalid one:

REPLACE  it is set to a value that works, or removed, and one line on stderr says so;
REFUSE   a ConfigError with the values to use: a guess could reach other machines, or none;
NOTE     it works, but not as most people expect; `vsd doctor` reports it.

The checks change nothing; `replace_bad_values` changes the environment. `groups` are the libraries that a
program is about to use, so that a bad ROS variable does not keep `vsd keys` from working.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from enum import Enum

from vlm_spec_decode.core import environment_checks as checks
from vlm_spec_decode.core.dds import MAX_DOMAIN
from vlm_spec_decode.core.environment_checks import Check, Environment, Replacement
from vlm_spec_decode.core.errors import ConfigError

PYTHON, ROS, DDS, OPENGL = "python", "ros", "dds", "opengl"
MODELS, SERVICE = "models", "service"
GROUPS = (PYTHON, ROS, DDS, OPENGL, MODELS, SERVICE)


class Remedy(Enum):
    """What is done about a bad value; see the module."""

    REPLACE = "replaced"
    REFUSE = "refused"
    NOTE = "noted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One entry: `problem` returns what is wrong with the variable in an environment, "" if nothing is.

    `instead` returns the value that a REPLACE sets; None removes the variable.
    """

    name: str
    group: str
    reader: str
    good: str
    remedy: Remedy
    problem: Check
    instead: Replacement = lambda _: None


@dataclass(frozen=True, slots=True)
class Problem:
    """A variable with a bad value, and what is wrong with it."""

    variable: Variable
    problem: str

    def line(self) -> str:
        """Return the problem and what a good value is, in one line."""
        return f"{self.problem}; good: {self.variable.good}"


def find_problems(environ: Environment, *groups: str) -> list[Problem]:
    """Return every variable of these groups (default: all) with a bad value."""
    chosen_groups = groups or GROUPS
    found = [Problem(each, each.problem(environ)) for each in VARIABLES if each.group in chosen_groups]
    return [each for each in found if each.problem]


def replace_bad_values(environ: MutableMapping[str, str], *groups: str) -> list[str]:
    """Replace the bad values that can be replaced, in the order of the list; return a line for each."""
    lines = []
    for each in VARIABLES:
        if each.group not in (groups or GROUPS) or each.remedy is not Remedy.REPLACE:
            continue
        problem = each.problem(environ)
        if not problem:
            continue
        value = each.instead(environ)
        if value is None:
            environ.pop(each.name, None)
        else:
            environ[each.name] = value
        lines.append(f"{problem}; {'ignored' if value is None else f'using {value}'}")
    return lines


def raise_for_refused(environ: Environment, *groups: str) -> None:
    """Raise ConfigError for the first bad value that must be refused."""
    for each in find_problems(environ, *groups):
        if each.variable.remedy is Remedy.REFUSE:
            raise ConfigError(each.line())


def prepare(*groups: str) -> None:
    """Replace bad values in this process's environment, with a line on stderr for each; refuse nothing.

    Child processes inherit the result, so each line is printed once.
    """
    if PYTHON in groups:
        escape_unencodable_output()
    if ROS in groups:
        checks.remove_foreign_ros(sys.path)
    if MODELS in groups:
        _silence_torchao()
    for line in replace_bad_values(os.environ, *groups):
        sys.stderr.write(f"vsd: {line}\n")
        if line.startswith("PYTHONWARNINGS"):
            _allow_warnings()


def rmw_in_use() -> str:
    """Return which RMW rclpy uses in this process, after `prepare`; "" if none is known."""
    return checks.rmw_in_use(os.environ)


def _silence_torchao() -> None:
    """Turn off the warnings of torchao.

    Transformers imports torchao wherever it is installed, and torchao then warns of CUDA kernels that a CPU
    build of torch cannot load and of names that torch has already. A model that needs them raises an error
    when it is loaded.
    """
    import logging

    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _allow_warnings() -> None:
    """Undo the filters that Python has made from PYTHONWARNINGS."""
    import warnings

    warnings.resetwarnings()
    for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", kind)


def escape_unencodable_output() -> None:
    """Let stdout and stderr write characters that their encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None and stream.errors != "backslashreplace":
            reconfigure(errors="backslashreplace")


REPLACE, REFUSE, NOTE = Remedy.REPLACE, Remedy.REFUSE, Remedy.NOTE
_RMW = "the name of an RMW that is installed"
_FLAG = "0 or 1"
_XML = "an XML file with profiles of Fast DDS"

_Row = tuple[str, str, str, Remedy, Check]


def _rows(group: str, *rows: _Row, **instead: Replacement) -> Iterable[Variable]:
    for name, reader, good, remedy, problem in rows:
        yield Variable(
            name=name,
            group=group,
            reader=reader,
            good=good,
            remedy=remedy,
            problem=problem,
            instead=instead.get(name, lambda _: None),
        )


VARIABLES: tuple[Variable, ...] = (
    *_rows(
        PYTHON,
        ("HOME", "rcl, pathlib, caches of all libraries", "a folder", REPLACE, checks.home),
        (
            "HOME",
            "caches of all libraries",
            "a folder that can be written",
            NOTE,
            checks.unwritable_home,
        ),
        ("PYTHONWARNINGS", "Python", "anything without error", REPLACE, checks.warnings),
        ("TMPDIR", "tempfile, torch, Ray", "a folder that can be written", NOTE, checks.temporary),
        HOME=checks.fallback_home,
    ),
    *_rows(
        ROS,
        ("PYTHONPATH", "Python", "no ROS of another Python", REPLACE, checks.foreign_ros),
        ("AMENT_PREFIX_PATH", "ament_index, rmw_implementation", "folders", NOTE, checks.ament),
        ("RMW_IMPLEMENTATION", "rcl, rmw_implementation", _RMW, REPLACE, checks.rmw),
        ("RCL_ASSERT_RMW_ID_MATCHES", "rcl", "what RMW_IMPLEMENTATION says", REPLACE, checks.asserted_rmw),
        ("ROS_DOMAIN_ID", "rcl", f"a whole number from 0 to {MAX_DOMAIN}", REFUSE, checks.domain),
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "rcl", ", ".join(checks.RANGES), REPLACE, checks.discovery_range),
        ("ROS_AUTOMATIC_DISCOVERY_RANGE", "rcl", "SUBNET or LOCALHOST", NOTE, checks.range_off),
        ("ROS_LOCALHOST_ONLY", "rcl", "nothing: ROS_AUTOMATIC_DISCOVERY_RANGE", NOTE, checks.localhost_only),
        ("ROS_STATIC_PEERS", "rmw_fastrtps", "addresses with semicolons", REPLACE, checks.unresolved_peers),
        ("ROS_DISCOVERY_SERVER", "Fast DDS", "HOST:PORT with semicolons", REPLACE, checks.discovery_server),
        ("ROS_LOG_DIR", "rcl_logging", "a folder that can be written", REPLACE, checks.logs),
        ("ROS_SECURITY_STRATEGY", "rcl", "Permissive, or a keystore", REFUSE, checks.security),
        (
            "RCUTILS_LOGGING_USE_STDOUT",
            "rcutils",
            _FLAG,
            REPLACE,
            checks.one_of("RCUTILS_LOGGING_USE_STDOUT", "0", "1"),
        ),
        (
            "RCUTILS_COLORIZED_OUTPUT",
            "rcutils",
            _FLAG,
            REPLACE,
            checks.one_of("RCUTILS_COLORIZED_OUTPUT", "0", "1"),
        ),
        (
            "RCUTILS_LOGGING_BUFFERED_STREAM",
            "rcutils",
            _FLAG,
            REPLACE,
            checks.one_of("RCUTILS_LOGGING_BUFFERED_STREAM", "0", "1"),
        ),
        ("RCUTILS_CONSOLE_OUTPUT_FORMAT", "rcutils", "text with {message}", REPLACE, checks.log_format),
        (
            "FASTRTPS_DEFAULT_PROFILES_FILE",
            "Fast DDS",
            _XML,
            REPLACE,
            checks.fast_dds_profile("FASTRTPS_DEFAULT_PROFILES_FILE"),
        ),
        (
            "FASTDDS_DEFAULT_PROFILES_FILE",
            "Fast DDS",
            _XML,
            REPLACE,
            checks.fast_dds_profile("FASTDDS_DEFAULT_PROFILES_FILE"),
        ),
        (
            "FASTDDS_BUILTIN_TRANSPORTS",
            "Fast DDS",
            "UDPv4, DEFAULT or another name of its manual",
            REPLACE,
            checks.transport,
        ),
        (
            "RMW_FASTRTPS_PUBLICATION_MODE",
            "rmw_fastrtps",
            "SYNCHRONOUS, ASYNCHRONOUS or AUTO",
            REPLACE,
            checks.one_of("RMW_FASTRTPS_PUBLICATION_MODE", "SYNCHRONOUS", "ASYNCHRONOUS", "AUTO"),
        ),
        ("CYCLONEDDS_URI", "rmw_cyclonedds", "XML, or a file that is there", REPLACE, checks.cyclone_uri),
        PYTHONPATH=checks.pythonpath_without_foreign_ros,
        RMW_IMPLEMENTATION=checks.first_installed_rmw,
        ROS_AUTOMATIC_DISCOVERY_RANGE=checks.nearest_range,
        ROS_STATIC_PEERS=checks.resolvable_peers,
        ROS_LOG_DIR=checks.fallback_log_folder,
    ),
    *_rows(
        DDS,
        ("CYCLONEDDS_PYTHON_NO_IMPORT_LIBS", "cyclonedds", "nothing", REPLACE, checks.no_dds_library),
        ("CYCLONEDDS_HOME", "cyclonedds", "a folder with lib/libddsc.so", REPLACE, checks.dds_home),
    ),
    *_rows(
        OPENGL,
        ("MUJOCO_GL", "MuJoCo", "osmesa or egl; glfw with a display", REPLACE, checks.gl),
        ("PYOPENGL_PLATFORM", "PyOpenGL", "the same as MUJOCO_GL", REPLACE, checks.platform),
        (
            "MUJOCO_EGL_DEVICE_ID",
            "MuJoCo",
            "the number of a device",
            REPLACE,
            checks.whole_number("MUJOCO_EGL_DEVICE_ID"),
        ),
        MUJOCO_GL=lambda _: checks.default_gl(),
        PYOPENGL_PLATFORM=checks.gl_in_use,
    ),
    *_rows(
        MODELS,
        (
            "OMP_NUM_THREADS",
            "libgomp, torch",
            "1 or more",
            REPLACE,
            checks.whole_number("OMP_NUM_THREADS", 1),
        ),
        ("MKL_NUM_THREADS", "torch", "1 or more", REPLACE, checks.whole_number("MKL_NUM_THREADS", 1)),
        (
            "HF_HUB_DOWNLOAD_TIMEOUT",
            "huggingface_hub",
            "whole seconds",
            REPLACE,
            checks.whole_number("HF_HUB_DOWNLOAD_TIMEOUT", 1),
        ),
        (
            "HF_HUB_ETAG_TIMEOUT",
            "huggingface_hub",
            "whole seconds",
            REPLACE,
            checks.whole_number("HF_HUB_ETAG_TIMEOUT", 1),
        ),
        ("HF_HOME", "huggingface_hub", "a folder that can be written", NOTE, checks.cache("HF_HOME")),
        (
            "XDG_CACHE_HOME",
            "huggingface_hub",
            "a folder that can be written",
            NOTE,
            checks.cache("XDG_CACHE_HOME"),
        ),
        ("CUDA_VISIBLE_DEVICES", "CUDA", "nothing, or numbers of GPUs", NOTE, checks.no_gpu),
    ),
    *_rows(SERVICE, ("RAY_ADDRESS", "Ray", "nothing: use --ray-address", NOTE, checks.ray)),
)
"""The list. A name that appears twice is replaced in one case and noted in another."""

BEYOND_REACH = ("PYTHONIOENCODING", "PYTHONHASHSEED", "PYTHONHOME", "LD_PRELOAD")
"""Read before any line of ours runs: a bad value ends Python itself, which says so."""
