"""`@step`: a plain function with typed parameters becomes a step type."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    overload,
)

from marshmallow import Schema, fields, validate

from workers.steps.contract import Done, QueueClass, Spawn, StepContext, StepType, Wait

P = ParamSpec("P")
R = TypeVar("R")


class FunctionStep(StepType, Generic[P, R]):
    """A step type whose parameters, `config`, are those of a function. Calling it calls the function."""

    is_orchestrator_step: ClassVar[bool] = True
    """By this orchestrator/plugins.py recognises one among a module's names."""

    function: Callable[P, R]
    context_parameter: str | None
    """The parameter that gets the StepContext."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def perform(self, context: StepContext) -> Done | Wait | Spawn:
        arguments = dict(context.config)
        if self.context_parameter:
            arguments[self.context_parameter] = context
        result: Any = cast(Callable[..., Any], self.function)(**arguments)
        if isinstance(result, (Done, Wait, Spawn)):
            return result
        return Done(result if isinstance(result, dict) else {"result": result})


@overload
def step(function: Callable[P, R], /) -> FunctionStep[P, R]: ...
@overload
def step(
    type: str | None = None, /, *, queue: QueueClass = "cpu"
) -> Callable[[Callable[P, R]], FunctionStep[P, R]]: ...
def step(type: Any = None, /, *, queue: QueueClass = "cpu") -> Any:
    """Make a step type of a function: `@step`, `@step("name")` or `@step("name", queue="cpu")`.

    The default queue has a process for each step, in which its timeout can interrupt it; `io` has threads, for
    functions that wait for others and watch the time themselves.

    The parameters become the step's config, checked by their annotations: int, float, str, bool, list, dict,
    Any, Literal, `X | None`, `list[X]`, `dict[str, X]`. One annotated StepContext gets the context. A dict
    returned is the step's output, any other value `{"result": value}`; Done and Wait are taken as they are.
    Raises TypeError, at import, that names the parameter that cannot be checked.
    """
    if callable(type):
        return _step_type(type, type.__name__, queue)
    return lambda function: _step_type(function, type or function.__name__, queue)


def _step_type(function: Callable[..., Any], name: str, queue: QueueClass) -> FunctionStep[..., Any]:
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        raise TypeError(f"@step takes a plain function, not {function!r}")
    if queue not in get_args(QueueClass):
        raise TypeError(f"@step {name!r}: queue is one of {', '.join(get_args(QueueClass))}, not {queue!r}")
    try:
        annotations = typing.get_type_hints(function)
    except NameError as error:
        raise TypeError(f"@step {name!r}: an annotation cannot be resolved at import: {error}") from error
    schema: dict[str, fields.Field[Any]] = {}
    context_parameter = None
    for parameter in inspect.signature(function).parameters.values():
        where = f"@step {name!r}: the parameter {parameter.name!r}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"{where} cannot be given by name")
        annotation = annotations.get(parameter.name, Any)
        if annotation is StepContext:
            context_parameter = parameter.name
        elif parameter.default is parameter.empty:
            schema[parameter.name] = _field(annotation, where, required=True)
        else:
            schema[parameter.name] = _field(annotation, where, load_default=parameter.default)
    # A class of its own, since a type's name, queue and schema belong to the class.
    members = {
        "type": name,
        "queue": queue,
        "Config": Schema.from_dict(cast(Any, schema), name=f"{name}Config"),
    }
    made = types.new_class(function.__name__, (FunctionStep,), exec_body=lambda body: body.update(members))()
    made.function = function
    made.context_parameter = context_parameter
    update_wrapper(made, function)
    return cast("FunctionStep[..., Any]", made)


_PLAIN: Mapping[Any, Callable[..., fields.Field[Any]]] = {
    int: lambda **options: fields.Integer(strict=True, **options),
    float: fields.Float,
    str: fields.String,
    bool: fields.Boolean,
    dict: fields.Dict,
    list: lambda **options: fields.List(fields.Raw(allow_none=True), **options),
    Any: lambda **options: fields.Raw(**{"allow_none": True, **options}),
}


def _field(annotation: Any, where: str, **options: Any) -> fields.Field[Any]:
    """The field that checks what `annotation` allows; `where` opens the TypeError when there is none."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation](**options)
    if origin in (Union, types.UnionType) and len(arguments) == 2 and types.NoneType in arguments:
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return _field(inner, where, **{**options, "allow_none": True})
    if origin is Literal:
        return fields.Raw(validate=validate.OneOf(arguments), **options)
    if origin is list:
        return fields.List(_field(arguments[0], where), **options)
    if origin is dict and arguments[0] is str:
        return fields.Dict(keys=fields.String(), values=_field(arguments[1], where), **options)
    shown = getattr(annotation, "__name__", annotation)
    raise TypeError(
        f"{where} is annotated {shown}, which cannot be checked; use int, float, str, bool, list, dict, Any, "
        "Literal, X | None, list[X] or dict[str, X]"
    )
