"""What the launch files declare, read without `launch`, which is part of a ROS installation."""

from __future__ import annotations

import ast
from pathlib import Path

from vlm_spec_decode.ros import node_parameters as params
from vlm_spec_decode.ros.node_parameters import Argument


def declared_arguments(path: Path) -> dict[str, Argument]:
    """Return the arguments that a launch file declares, without running it."""
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "ARGUMENTS":
            expression = compile(ast.Expression(statement.value), path.name, "eval")
            return {each.name: each for each in eval(expression, vars(params).copy())}
    raise AssertionError(f"{path.name} declares no arguments")
