"""Jinja's immutable sandbox, with every operation that can grow or reach further replaced by a bounded one.

The sandbox alone stops neither `'a' * 10**9` nor a filter that builds a gigabyte, and looks names up as Python
attributes. So the code generator hands each lookup, call, comparison and concatenation to this environment,
together with the rendering's budget.
"""

from __future__ import annotations

from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Template
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from orchestrator.definition import operations
from orchestrator.definition.bounds import Budget, text_of
from orchestrator.definition.functions import FILTERS, TESTS
from orchestrator.definition.methods import invoke
from orchestrator.definition.syntax import dotted


class BoundedContext(Context):
    """A rendering's names, and what it may still do."""

    budget: Budget


class _Generator(CodeGenerator):
    """Python source in which nothing acts on a value but the methods of Environment below."""

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:
        self._call("member", frame, node.node, nodes.Const(node.attr), nodes.Const(dotted(node)))

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            ends = [end or nodes.Const(None) for end in (node.arg.start, node.arg.stop, node.arg.step)]
            self._call("part", frame, node.node, *ends)
        else:
            self._call("member", frame, node.node, node.arg, nodes.Const(dotted(node)))

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:  # noqa: ARG002
        if isinstance(node.node, nodes.Getattr):
            self._call("invoke", frame, node.node.node, nodes.Const(node.node.attr), *node.args, *node.kwargs)
        else:
            self._call("make_range", frame, *node.args, *node.kwargs)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self._call("join_texts", frame, *node.nodes)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        ops = nodes.Const(tuple(operand.op for operand in node.ops))
        self._call("compare", frame, ops, node.expr, *(operand.expr for operand in node.ops))

    def _call(self, method: str, frame: Frame, *arguments: nodes.Node) -> None:
        self.write(f"environment.{method}(context")
        for argument in arguments:
            self.write(", ")
            self.visit(argument, frame)
        self.write(")")


@pass_context
def _as_text(context: BoundedContext, value: object) -> str:
    return text_of(value, context.budget)


class Environment(ImmutableSandboxedEnvironment):
    """What generated code calls. Every method takes the rendering's context first."""

    code_generator_class = _Generator
    context_class = BoundedContext
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self) -> None:
        super().__init__(
            undefined=operations.Missing,
            finalize=_as_text,
            autoescape=False,
            optimized=False,  # folding constants would compute without a budget
            keep_trailing_newline=True,
            # Not a comment: '{#' is plain text, which style sheets have. NUL is in no definition.
            comment_start_string="{\0#",
            comment_end_string="#\0}",
            cache_size=0,
        )
        self.globals.clear()
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)

    def member(self, context: BoundedContext, obj: Any, key: Any, name: str) -> Any:
        context.budget.spend(1)
        return operations.member(obj, key, name)

    def part(self, context: BoundedContext, obj: Any, start: Any, stop: Any, step: Any) -> Any:
        return operations.part(obj, start, stop, step, context.budget)

    def invoke(self, context: BoundedContext, obj: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        return invoke(context.budget, obj, name, args, kwargs)

    def make_range(self, context: BoundedContext, *args: Any) -> list[int]:
        return operations.make_range(args, context.budget)

    def join_texts(self, context: BoundedContext, *values: Any) -> str:
        return operations.concat(values, context.budget)

    def compare(self, context: BoundedContext, ops: tuple[str, ...], *operands: Any) -> bool:
        return operations.compare(ops, operands, context.budget)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return operations.binary(operator, left, right, cast(BoundedContext, context).budget)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return operations.member(obj, attribute, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return operations.member(obj, argument, str(argument))

    def is_safe_callable(self, obj: Any) -> bool:  # noqa: ARG002
        return False

    def context_for(self, names: Any, budget: Budget) -> BoundedContext:
        """A context for one rendering over the mapping `names`."""
        context = BoundedContext(self, names, None, {})
        context.budget = budget
        return context

    def program(self, tree: nodes.Template) -> Template:
        """The compiled program of a checked syntax tree."""
        return Template.from_code(self, self.compile(tree), {})
