"""What a handler returns: the `Out` of `Job[Out]`, read from a class.

However many generic classes stand between a job's class and `Job`: it is found by climbing from the one to the other,
putting what each names in the place of its parents' type variables. A forward reference is looked up where it was
written, when it is first needed, since it may name a class that is defined later.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import NoDefault, TypeVar

from jobkit.definition import Job
from jobkit.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Mapping


def output_of(cls: type[Job[Any]]) -> Any:
    """Find the type that a job's class declares as its output.

    Args:
        cls: The class.

    Returns:
        The type; `Any` if the class says none.

    Raises:
        InvalidJob: It names what isn't there.
    """
    output = _declared(cls, cls.__module__)
    while isinstance(output, TypeVar):  # a generic job, decorated as it is
        default = getattr(output, "__default__", NoDefault)
        output = (output.__bound__ or Any) if default is NoDefault else default
    return output


def _declared(cls: type[Job[Any]], module: str) -> Any:
    if cls is Job:
        return Any
    generic = cls.__pydantic_generic_metadata__
    origin = generic["origin"]
    if origin is Job:
        return _resolved(generic["args"][0], module)
    if origin is not None:
        parameters = origin.__pydantic_generic_metadata__["parameters"]
        declared = _declared(cast("type[Job[Any]]", origin), origin.__module__)
        return _substituted(declared, dict(zip(parameters, generic["args"], strict=True)))
    found = [_declared(base, cls.__module__) for base in cls.__bases__ if issubclass(base, Job)]
    return next((one for one in found if one is not Any), Any)


def _resolved(annotation: Any, module: str) -> Any:
    def holder() -> None: ...

    holder.__annotations__ = {"out": annotation}
    try:
        return get_type_hints(holder, vars(sys.modules[module]), include_extras=True)["out"]
    except NameError as error:
        raise InvalidJob(f"the output type {annotation!r}: {error}; define it at the top level of {module}") from error


def _substituted(annotation: Any, values: Mapping[Any, Any]) -> Any:
    if isinstance(annotation, TypeVar):
        return values.get(annotation, annotation)
    model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    generic = annotation.__pydantic_generic_metadata__ if model else {"origin": get_origin(annotation)}
    parameters = generic.get("parameters") or getattr(annotation, "__parameters__", ())
    if generic["origin"] is None or not parameters:
        return annotation
    return annotation[tuple(values.get(one, one) for one in parameters)]
