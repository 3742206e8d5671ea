"""What ``MODULE:NAME`` and ``MODULE:NAME(arguments)`` on the command line stand for."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from types import ModuleType
from typing import Any

from tenfold.untrusted.values import brief


def evaluate(target: str, what: str) -> Any:
    """The object that ``MODULE:NAME`` or ``MODULE:NAME(arguments)`` names.

    Arguments are literals, names of the module, and calls of such names; nothing else is evaluated. A
    class is called without arguments.

    Parameters
    ----------
    target : str
        For instance ``"tenfold.manifolds:TuckerManifold((6, 5, 4), (3, 2, 2))"``. Modules in the working
        directory are found.
    what : str
        What it is called in errors, with its article.

    Raises
    ------
    ValueError
        If the module or the name does not exist, or the expression is not allowed or fails.
    """
    name, colon, expression = target.partition(":")
    if not colon or not name or not expression:
        raise ValueError(f"{what} is named MODULE:NAME or MODULE:NAME(arguments), not {target!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"cannot import the module {name!r}: {error}") from None
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{brief(expression)} is not a Python expression: {error}") from None
    try:
        value = _value(tree, module)
        return value() if isinstance(value, type) else value
    except ValueError:
        raise
    except Exception as error:  # whatever the code that was named raises
        raise ValueError(f"cannot make {brief(expression)}: {error}") from error


def _value(node: ast.expr, module: ModuleType) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Tuple():
            return tuple(_value(item, module) for item in node.elts)
        case ast.List():
            return [_value(item, module) for item in node.elts]
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand, module)
        case ast.Name() | ast.Attribute():
            return _named(node, module)
        case ast.Call() if all(keyword.arg for keyword in node.keywords):
            arguments = [_value(item, module) for item in node.args]
            named = {str(item.arg): _value(item.value, module) for item in node.keywords}
            return _value(node.func, module)(*arguments, **named)
    raise ValueError(
        f"{ast.unparse(node)!r} is neither a literal, nor a name of the module, nor a call of one"
    )


def _named(node: ast.Name | ast.Attribute, module: ModuleType) -> Any:
    if isinstance(node, ast.Name):
        owner, name = module, node.id
    else:
        owner, name = _value(node.value, module), node.attr
    if not hasattr(owner, name):
        raise ValueError(f"there is no {name!r} in {getattr(owner, '__name__', owner)}")
    return getattr(owner, name)
