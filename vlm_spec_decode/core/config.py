"""Settings: each is described once, and every settings file is read here.

A field of a settings dataclass that `setting` makes carries its default, range, choices and description.
From it follow the option of a command (`core.options`), the ROS parameter (`ros.params`), the launch argument
(`ros.params`), the key of a settings file and the rows of the tables in docs/parameters.md.

A settings file is YAML. Unknown keys are refused with the nearest known one, values of another type or out of
range with the file and the key. `effective` and `digest` show the result of defaults, file and options.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_type_hints

from vlm_spec_decode.core.errors import ConfigError, VsdError
from vlm_spec_decode.core.types import text_problem

ASSETS = Path(__file__).parents[1] / "assets"
"""Folder of the files that ship with the package."""


T = TypeVar("T")
Scalar: TypeAlias = bool | int | float | str
Choices: TypeAlias = Iterable[str] | Callable[[], Iterable[str]]
"""Names, a registry whose iteration gives names, or a function that returns them."""

MAX_FILE_BYTES = 4_000_000
"""Largest size of a settings file."""

UNITS: Mapping[str, str] = {
    "_mps2": "m/s²",
    "_radps2": "rad/s²",
    "_mps": "m/s",
    "_radps": "rad/s",
    "_mbps": "Mbit/s",
    "_ms": "ms",
    "_s": "s",
    "_hz": "Hz",
    "_m": "m",
    "_deg": "°",
    "_rad": "rad",
    "_mib": "MiB",
    "_bytes": "bytes",
    "_per_s": "1/s",
}
"""Units by the ending of a setting's name."""

_KEY = "setting"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    `low` and `high` bound a number; `one_of` are the texts that it may be, or the registry that has them.
    `live`: a running node accepts a new value. A default of None means that there is no value; other values
    then have the type `type_of_none`.
    """

    name: str
    default: Any
    description: str
    low: float | None = None
    high: float | None = None
    one_of: Choices = ()
    live: bool = False
    type_of_none: type[Any] = str

    @property
    def kind(self) -> type[Any]:
        """Return the type of its values: that of the default, `type_of_none` where that is None."""
        if isinstance(self.default, Path):
            return Path
        return self.type_of_none if self.default is None else type(self.default)

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the texts that it may be, as the registry has them now; empty: any."""
        return tuple(self.one_of() if callable(self.one_of) else self.one_of)

    @property
    def unit(self) -> str:
        """Return its unit, which its name ends with; "" without one."""
        endings = sorted(UNITS, key=len, reverse=True)
        return next((UNITS[ending] for ending in endings if self.name.endswith(ending)), "")

    @property
    def is_real(self) -> bool:
        """Whether it is a real number."""
        return self.kind is float

    @property
    def text(self) -> str:
        """Return its default as tables show it, "" for none."""
        if isinstance(self.default, tuple):
            return ", ".join(map(str, self.default))
        return "" if self.default is None else str(self.default)

    @property
    def bounds(self) -> str:
        """Return its range or its choices in words, "" if every value of its type is allowed."""
        if self.choices:
            return ", ".join(self.choices)
        if self.low is None:
            return "" if self.high is None else f"up to {self.high:.12g}"
        return f"from {self.low:.12g}" if self.high is None else f"{self.low:.12g} to {self.high:.12g}"

    def check(self, value: object) -> str:
        """Return what is wrong with a value of the right type: text, choice or range; "" if nothing."""
        if isinstance(value, str) and (problem := text_problem(value)):
            return f"{problem}"
        if self.one_of and isinstance(value, str) and value not in (known := self.choices):
            return f"{value!r} is none of {', '.join(known)}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return ""
        low, high = self.low, self.high
        is_low, is_high = low is not None and value < low, high is not None and value > high
        if low is not None and high is not None and (is_low or is_high or not math.isfinite(value)):
            return f"{value} is not within {low:.12g} to {high:.12g}"
        if is_low or (low is not None and not math.isfinite(value)):
            return f"{value} is below {low:.12g}, or no finite number"
        return f"{value} is above {high:.12g}" if is_high else ""

    def refuse(self, value: object) -> None:
        """Raise ConfigError that names the setting unless `value` is within its range and choices."""
        if problem := self.check(value):
            raise ConfigError(f"{self.name} {problem}")


def setting(
    default: T,
    description: str,
    low: float | None = None,
    high: float | None = None,
    *,
    one_of: Choices = (),
    live: bool = False,
) -> T:
    """Return a dataclass field that is a setting; the arguments are those of `Setting`."""
    made = Setting("", default, description, low, high, one_of, live)
    found: T = field(default=default, metadata={_KEY: made})
    return found


def described(
    description: str, low: float | None = None, high: float | None = None, *, one_of: Choices = ()
) -> dict[str, Setting]:
    """Return the metadata of a field that is a setting without a default: `field(metadata=described(…))`."""
    return {_KEY: Setting("", None, description, low, high, one_of)}


def same_as(kind: type[Any], name: str) -> Any:
    """Return a field that is the same setting as one of another dataclass, with the same default."""
    (found,) = (f for f in fields(kind) if f.name == name)
    return field(default=found.default, metadata=found.metadata)


def settings_of(kind: type[Any]) -> Mapping[str, Setting]:
    """Return the settings among a dataclass's fields by name, in order."""
    found = (f for f in fields(kind) if _KEY in f.metadata)
    return {f.name: replace(f.metadata[_KEY], name=f.name, type_of_none=_type_of(str(f.type))) for f in found}


def _type_of(annotation: str) -> type[Any]:
    """Return the first plain type that an annotation such as `int | None` names, text if none."""
    return next((kind for kind in (int, float, Path) if kind.__name__ in annotation.split(" | ")), str)


def check_ranges(config: Any) -> None:
    """Raise ConfigError for the first setting of a dataclass that is out of its range or choices."""
    for name, each in settings_of(type(config)).items():
        each.refuse(getattr(config, name))


def effective(config: Any) -> dict[str, Any]:
    """Return the settings as plain data: paths as text, nested dataclasses as mappings."""
    return {name: _plain(getattr(config, name)) for name in settings_of(type(config))}


def digest(settings: Mapping[str, Any]) -> str:
    """Return a hash of plain settings, as `effective` returns them [16 hexadecimal digits]."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return effective(value) if is_dataclass(value) else value


def from_mapping(
    kind: type[T], values: Mapping[Any, Any], where: str = "", error: type[VsdError] = ConfigError
) -> T:
    """Build a settings dataclass from the values of a file; the other fields have their defaults.

    `where` begins every message. Raises `error` for an unknown or missing key, a wrong type, a range.
    """
    read = read_values(kind, values, where, error=error)
    try:
        return kind(**read)
    except (TypeError, ValueError, VsdError) as reason:
        raise error(f"{where or kind.__name__}: {reason}") from reason


def read_values(
    kind: type[Any],
    values: Mapping[Any, Any],
    where: str = "",
    more: Iterable[Setting] = (),
    error: type[VsdError] = ConfigError,
) -> dict[str, Any]:
    """Return a file's values in the types of a settings dataclass, `more` settings beside its own.

    Raises `error` that names the key.
    """
    known = {**settings_of(kind), **{each.name: each for each in more}}
    types = {**get_type_hints(kind), **{each.name: type(each.default) for each in more}}
    try:
        refuse_unknown(values, known)
        return {key: _converted(known[key], types[key], value) for key, value in values.items()}
    except ConfigError as reason:
        raise error(f"{where or kind.__name__}: {reason}") from reason


def refuse_unknown(values: Mapping[Any, Any], known: Iterable[str]) -> None:
    """Raise ConfigError for an unknown key, with the known one that was probably meant."""
    names = list(known)
    unknown = [key for key in values if key not in names]
    if not unknown:
        return
    near = get_close_matches(str(unknown[0]), names, 1)
    hint = f"do you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    names_text = ", ".join(repr(str(key)) for key in unknown)
    raise ConfigError(f"unknown key {names_text}; {hint}")


def _converted(known: Setting, kind: Any, value: object) -> Any:
    """Return one value as `kind`. Raises ConfigError that begins with the key."""
    import msgspec

    if kind is float and not _is_number(value, is_bounded=known.low is not None):
        raise ConfigError(f"{known.name}: a number is wanted, not {value!r}")
    try:
        found = msgspec.convert(value, kind, dec_hook=_from_text)
    except msgspec.ValidationError as reason:
        raise ConfigError(f"{known.name}: {reason} ({known.description.rstrip('.')})") from reason
    except RuntimeError as reason:  # the home of a user that does not exist
        raise ConfigError(f"{known.name}: {reason}") from reason
    known.refuse(found)
    return found


def _is_number(value: object, *, is_bounded: bool) -> bool:
    """Return whether a value is a number: whole numbers are, quoted numbers, booleans and lists are not.

    NaN is one if the setting has a range, whose check refuses it.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (is_bounded or not math.isnan(float(str(value))))


def _from_text(kind: type[Any], value: Any) -> Any:
    """Convert what YAML has no type for: a path, in which `~` is expanded."""
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    raise ValueError(f"Expected {'a path' if kind is Path else kind.__name__}, got `{type(value).__name__}`")


def read_config(kind: type[T], path: Path, error: type[VsdError] = ConfigError) -> T:
    """Return a settings dataclass as a file has it. Raises `error` that names the file and the key."""
    return from_mapping(kind, read_mapping(path, error), str(path), error)


def read_mapping(path: Path, error: type[VsdError] = ConfigError) -> Mapping[Any, Any]:
    """Return a YAML file's mapping. Raises `error` that names the file and what is wrong with it."""
    values = read_yaml(path, error)
    if not isinstance(values, dict):
        raise error(f"{path}: a mapping of settings is expected")
    return values


def read_yaml(path: Path, error: type[VsdError] = ConfigError) -> Any:
    """Return the content of a YAML file. Raises `error` with the file's name and the problem, in one line."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise error(f"{path}: larger than {MAX_FILE_BYTES} bytes, which no file of settings is")
        return parse_yaml(path.read_bytes(), str(path), error)
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason})") from reason
    except ValueError as reason:  # a NUL in the name
        raise error(f"{path!s:.80}: {reason}") from reason


def parse_yaml(data: bytes, where: str, error: type[VsdError] = ConfigError) -> Any:
    """Return the content of YAML in UTF-8; `where` begins the message of an `error`."""
    import yaml

    try:
        text = data.decode("utf-8-sig")  # some editors write a byte order mark
    except UnicodeDecodeError as reason:
        line = data[: reason.start].count(b"\n") + 1
        raise error(f"{where}: line {line} is not UTF-8: byte 0x{data[reason.start]:02x}") from reason
    try:
        found = yaml.safe_load(text)
        problem = next((found_problem for each in _texts(found) if (found_problem := text_problem(each))), "")
    # Beside its own errors: a date that does not exist, nesting without end, a key that is a list.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as reason:
        raise error(
            f"{where}: not YAML, or no YAML that is safe to read: {' '.join(str(reason).split())}"
        ) from reason
    if problem:
        raise error(f"{where}: {problem}")
    return found


def _texts(found: Any) -> Iterator[str]:
    """Yield all texts in the content of YAML; its escapes can make lone surrogates."""
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):
        for key, value in found.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(found, list):
        for each in found:
            yield from _texts(each)
