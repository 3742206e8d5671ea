"""Public names have docstrings in numpydoc's format, complete in parameters and results."""

import importlib
import inspect
from dataclasses import is_dataclass
from enum import Enum

import pytest
from numpydoc.docscrape import ClassDoc
from numpydoc.validate import validate

ROOMS = ["linalg", "manifolds", "optim", "nn", "nn.adapters", "testing"]
REQUIRED = {
    "GL08",  # no docstring
    "PR01",  # parameters not documented
    "PR02",  # parameters documented that do not exist
    "PR03",  # in another order
    "PR10",  # malformed
    "RT01",  # no Returns
    "YD01",  # no Yields
}


def _public(kind):
    for room in ROOMS:
        module = importlib.import_module(f"tenfold.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            if kind(thing) and thing.__module__.startswith("tenfold"):
                yield f"{module.__name__}.{name}"


def _complaints(name):
    passes_on = inspect.Parameter.VAR_KEYWORD in {
        parameter.kind for parameter in inspect.signature(_load(name)).parameters.values()
    }
    return [
        f"{name}: {text}"
        for code, text in validate(name)["errors"]
        if code in REQUIRED
        # Arguments that are passed on may be documented by their own names.
        and not (passes_on and (code == "PR02" or (code == "PR01" and text.count("'") == 2 and "**" in text)))
    ]


def _load(name):
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", list(_public(inspect.isfunction)))
def test_a_function_documents_its_parameters_and_result(name):
    assert not _complaints(name)


@pytest.mark.parametrize("name", list(_public(inspect.isclass)))
def test_a_class_documents_its_parameters(name):
    cls = _load(name)
    if inspect.isabstract(cls) or is_dataclass(cls) or issubclass(cls, Enum | tuple | Exception):
        # They are subclassed, filled or named, not constructed from a signature of their own.
        documented = ClassDoc(cls)
        assert "".join(documented["Summary"])
        assert documented["Parameters"] or documented["Attributes"] or issubclass(cls, Enum | Exception)
    else:
        assert not _complaints(name)


@pytest.mark.parametrize("name", list(_public(inspect.isclass)))
def test_every_public_method_has_a_docstring_of_its_own_or_inherited(name):
    cls = _load(name)
    silent = [
        member
        for member, value in vars(cls).items()
        if not member.startswith("_")
        and (callable(value) or isinstance(value, property | classmethod | staticmethod))
        and not inspect.getdoc(getattr(cls, member))
    ]
    assert not silent
