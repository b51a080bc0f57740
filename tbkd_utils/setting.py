"""One setting of a recipe: its part of the pipeline, its help, its allowed values, and the check of a value."""

import dataclasses
import math
import types
import typing
from dataclasses import field
from typing import Any

from tbkd_utils.errors import TbkdError


class RecipeError(TbkdError, ValueError):
    """A recipe, a setting or a value that does not exist."""


def setting(default: Any, part: str, help: str, *, choices: tuple = (), low: float | None = None,
             high: float | None = None, above: float | None = None) -> Any:  # fmt: skip
    """A dataclass field with its part of the pipeline, one line of help and its allowed values."""
    limits = {"choices": choices, "low": low, "high": high, "above": above}
    return field(default=default, metadata={"part": part, "help": help, **limits})


def checked(spec: dataclasses.Field, hint: Any, value: Any) -> Any:
    """Returns the value in the field's type, or raises an error that says what was expected."""
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise RecipeError(f"{spec.name} is {value!r}: expected a list of {inner.__name__}.")
        problems = [problem for entry in value if (problem := _problem(spec, inner, entry))]
        if problems:
            raise RecipeError(f"{spec.name} is {value!r}: expected a list of {inner.__name__}; in it, {problems[0]}.")
        return tuple(inner(entry) for entry in value)
    problem = _problem(spec, hint, value)
    if problem:
        raise RecipeError(f"{spec.name} is {value!r} ({type(value).__name__}): {problem}.")
    return hint(value)


def _problem(spec: dataclasses.Field, kind: Any, value: Any) -> str | None:
    """Says what was expected instead of this value, if anything."""
    if type(value) is not kind and not (kind is float and type(value) is int):
        return f"expected {kind.__name__}"
    limits = types.SimpleNamespace(**spec.metadata)
    if limits.choices and value not in limits.choices:
        return f"expected one of {', '.join(map(repr, limits.choices))}"
    if kind is float and not math.isfinite(value):
        return "expected a finite number"
    too_low = limits.low is not None and not value >= limits.low
    too_high = limits.high is not None and not value <= limits.high
    if too_low or too_high or (limits.above is not None and not value > limits.above):
        bounds = [f"above {limits.above:.10g}"] if limits.above is not None else []
        bounds += [f"at least {limits.low:.10g}"] if limits.low is not None else []
        bounds += [f"at most {limits.high:.10g}"] if limits.high is not None else []
        return f"expected a number {' and '.join(bounds)}"
    return None
