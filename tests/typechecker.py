"""What checks the shapes and dtypes that functions declare, in tests."""

from collections.abc import Callable
from typing import Any

import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its declarations checked.

    A function within a function stays as it is: its checks would be made anew, in milliseconds, at
    every call of the outer one, which is checked itself.
    """
    return function if "<locals>" in function.__qualname__ else beartype.beartype(function)
