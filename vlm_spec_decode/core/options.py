"""Settings as options of a command: name, default, range, choices and help follow from the setting.

Imports click and nothing else that takes time, so that every `--help` is quick.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from vlm_spec_decode.core.config import Setting, settings_of

Function = TypeVar("Function", bound=Callable[..., Any])

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


class RegistryName(click.ParamType):  # type: ignore[type-arg]
    """A name in a registry. Help shows the registered names; the code that uses a name checks it.

    With `is_list` it takes several, with commas between them.
    """

    name = "name"

    def __init__(self, setting: Setting, *, is_list: bool = False) -> None:
        self.setting, self.is_list = setting, is_list

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ARG002
        """Return the name, or the names of a list."""
        if not self.is_list or isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """Return the names, as help shows a choice."""
        known = f"[{'|'.join(self.setting.choices)}]" if self.setting.one_of else "NAME"
        return f"{known},…" if self.is_list else known


def names(kind: type[Any], name: str) -> RegistryName:
    """Return the type of an option that takes several of a setting's names, with commas between."""
    return RegistryName(settings_of(kind)[name], is_list=True)


def click_type(setting: Setting) -> click.ParamType[Any]:
    """Return the type of a setting's option, of each value where it takes several."""
    if setting.kind is tuple:
        return click_type(replace(setting, default=setting.default[0] if setting.default else ""))
    if callable(setting.one_of) or (setting.one_of and not isinstance(setting.one_of, tuple | list)):
        return RegistryName(setting)
    if setting.one_of:
        return click.Choice(list(setting.choices))
    if setting.kind is bool:
        return click.BOOL
    is_bounded = setting.low is not None or setting.high is not None
    if setting.kind is int:
        low, high = (None if bound is None else int(bound) for bound in (setting.low, setting.high))
        return click.IntRange(low, high) if is_bounded else click.INT
    if setting.kind is float:
        return click.FloatRange(setting.low, setting.high) if is_bounded else click.FLOAT
    return FILE if setting.kind is Path else click.STRING


def setting_option(setting: Setting, flag: str = "", **changes: Any) -> Callable[[Function], Function]:
    """Return the option of a setting as a decorator.

    `flag` is its name on the command line if that is another than the setting's; `changes` are arguments of
    `click.option`. A yes or no that is on by default becomes `--no-NAME`; an option of several values may be
    repeated, unless its type takes a list.
    """
    flag = flag or f"--{setting.name.replace('_', '-')}"
    usual: dict[str, Any] = {"default": setting.default, "help": setting.description}
    if isinstance(setting.default, bool):
        usual["is_flag"] = True
        if setting.default:
            flag = f"--no-{flag.removeprefix('--')}"
            usual |= {
                "flag_value": False,
                "help": f"Do not {setting.description[0].lower()}{setting.description[1:]}",
            }
    else:
        is_list = isinstance(changes.get("type"), RegistryName)
        shown = ",".join(setting.default) if is_list else setting.default not in (None, "", ())
        usual |= {"type": click_type(setting), "show_default": shown or False}
        usual["multiple"] = setting.kind is tuple and not is_list
    return click.option(flag, setting.name, **{**usual, **changes})


def options(kind: type[Any], *chosen: str, **types: Any) -> Callable[[Function], Function]:
    """Return the options of several settings of a dataclass as one decorator, in the given order.

    Without names: all. `types` names the click type of an option that its setting does not say, such as a
    folder.
    """
    known = settings_of(kind)

    def decorate(function: Function) -> Function:
        for name in reversed(chosen or tuple(known)):
            changes = {"type": types[name]} if name in types else {}
            function = setting_option(known[name], **changes)(function)
        return function

    return decorate


def option(kind: type[Any], name: str, flag: str = "", **changes: Any) -> Callable[[Function], Function]:
    """Return the option of one setting of a dataclass; see `setting_option`."""
    return setting_option(settings_of(kind)[name], flag, **changes)


def table(command: click.Command, title: str) -> list[str]:
    """Return the options of a command as a section of a page in Markdown."""
    context = click.Context(command, info_name=title)
    rows = [row for each in command.params if (row := _row(each, context))]
    text = (command.help or "").strip().partition("\n\n")[0].replace("\n", " ")
    head = ["| option | default | values | meaning |", "| --- | --- | --- | --- |"] if rows else []
    return ["", f"## {title}", "", " ".join(text.split()), "", *head, *rows]


def _row(parameter: click.Parameter, context: click.Context) -> str:
    """Return one row of a table; "" for an argument and for `--json` and `--help`."""
    if not isinstance(parameter, click.Option) or parameter.name in ("as_json", "help"):
        return ""
    names = " ".join(f"`{name}`" for name in parameter.opts)
    default = "" if parameter.is_flag else _shown(parameter)
    values = "" if parameter.is_flag else _values(parameter, context)
    return f"| {names} | {f'`{default}`' if default else ''} | {values} | {parameter.help or ''} |"


def _shown(parameter: click.Option) -> str:
    """Return an option's default as help shows it, "" if there is none."""
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    default = parameter.default
    if isinstance(default, tuple | list):
        return ",".join(map(str, default))
    return str(default) if isinstance(default, str | int | float | Path) else ""


def _values(parameter: click.Option, context: click.Context) -> str:
    """Return the values of an option in words: a range, names, or a type."""
    if isinstance(parameter.type, click.IntRange | click.FloatRange):
        low, high = parameter.type.min, parameter.type.max
        return f"from {low:g}" if high is None else f"{low or 0:.12g} to {high:.12g}"
    return parameter.make_metavar(ctx=context).replace("|", ", ").translate(str.maketrans("", "", "[]"))


def finish(as_json: bool, document: Mapping[str, Any], text: str = "") -> None:
    """Print the last output of a command: one line of JSON with `as_json`, else the text, if any."""
    if as_json:
        click.echo(json.dumps(document))
    elif text:
        click.echo(text)


def as_json(function: Function) -> Function:
    """Add the option `--json` to a command: its last line is then one JSON document."""
    return click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")(function)
