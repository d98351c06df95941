"""`@step`: functions as step types, and how plugins bring them in."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from marshmallow import ValidationError
from performing import context_of

from orchestrator.errors import ConfigurationError
from orchestrator.plugins import load_catalogue, load_trigger_types
from workers.steps import Done, StepContext, StepType, Wait, step


def performed(step_type: StepType, **config: Any) -> Done | Wait:
    return step_type.perform(context_of(step_type, config))


@step("add", queue="cpu")
def add(a: int, b: int = 2) -> int:
    """The sum."""
    return a + b


def test_a_decorated_function_is_a_step_type_and_still_a_function() -> None:
    assert isinstance(add, StepType)
    assert (add.type, add.queue, add.__doc__) == ("add", "cpu", "The sum.")
    assert add(1, b=3) == 4


def test_parameters_become_the_config_and_defaults_make_them_optional() -> None:
    assert performed(add, a=1) == Done({"result": 3})
    assert performed(add, a=1, b=5) == Done({"result": 6})
    with pytest.raises(ValidationError, match="required"):
        add.Config().load({})
    with pytest.raises(ValidationError, match="Unknown field"):
        add.Config().load({"a": 1, "c": 1})


def test_the_bare_decorator_takes_the_functions_name() -> None:
    @step
    def shout(text: str) -> dict[str, str]:
        return {"loud": text.upper()}

    assert (shout.type, shout.queue) == ("shout", "cpu")
    assert performed(shout, text="a") == Done({"loud": "A"})


def test_two_functions_do_not_share_a_name_or_a_config() -> None:
    @step
    def other(x: str) -> str:
        return x

    assert (add.type, other.type) == ("add", "other")
    assert set(other.Config().fields) == {"x"}


def test_every_documented_annotation_is_checked() -> None:
    @step
    def everything(
        f: float,
        flag: bool,
        items: list[int],
        table: dict[str, float],
        mode: Literal["fast", 3],
        maybe: int | None,
        plain: list,  # type: ignore[type-arg]
        anything: Any = None,
        fields: str | None = None,
    ) -> list[Any]:
        return [f, flag, items, table, mode, maybe, plain, anything, fields]

    good = {"f": 1.5, "flag": True, "items": [1], "table": {"a": 1.0}, "mode": 3, "maybe": None, "plain": [None]}
    assert performed(everything, **good) == Done({"result": [1.5, True, [1], {"a": 1.0}, 3, None, [None], None, None]})
    wrong = {"f": "x", "flag": "x", "items": ["x"], "table": {"a": "x"}, "mode": 4, "maybe": 1.5, "plain": 1}
    with pytest.raises(ValidationError) as refused:
        everything.Config().load(wrong)
    assert set(refused.value.messages_dict) == set(wrong)


def test_a_parameter_annotated_stepcontext_gets_the_context() -> None:
    @step
    def keyed(context: StepContext, n: int = 0) -> str:
        return context.idempotency_key

    assert performed(keyed) == Done({"result": "execution:loop[1].step"})
    assert set(keyed.Config().fields) == {"n"}


def test_done_and_wait_are_taken_as_they_are() -> None:
    later = Wait(datetime(2030, 1, 1, tzinfo=UTC))

    @step
    def resting() -> Wait:
        return later

    @step
    def skipping() -> Done:
        return Done({"a": 1}, skip=frozenset({"b"}))

    assert performed(resting) is later
    assert performed(skipping) == Done({"a": 1}, skip=frozenset({"b"}))


def test_an_annotation_that_cannot_be_checked_is_a_type_error_naming_it() -> None:
    with pytest.raises(TypeError, match="'when' is annotated datetime"):

        @step
        def dated(when: datetime) -> None: ...


def test_functions_that_cannot_be_called_by_name_or_awaited_are_refused() -> None:
    with pytest.raises(TypeError, match="'rest' cannot be given by name"):

        @step
        def variadic(*rest: int) -> None: ...

    with pytest.raises(TypeError, match="plain function"):

        @step
        async def awaited() -> None: ...

    with pytest.raises(TypeError, match="queue is one of"):
        step("x", queue="gpu")(lambda: None)  # type: ignore[call-overload]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    load_catalogue.cache_clear()
    load_trigger_types.cache_clear()
    yield tmp_path / "sample_plugin.py"
    load_catalogue.cache_clear()
    load_trigger_types.cache_clear()
    sys.modules.pop("sample_plugin", None)


def test_a_plugin_module_needs_only_decorated_functions(plugin: Path) -> None:
    plugin.write_text("from workers.steps import step\n@step('fib', queue='cpu')\ndef fib(n: int): return n\n")
    catalogue = load_catalogue("sample_plugin")
    assert catalogue["fib"].queue == "cpu"
    assert {"set", "condition"} <= set(catalogue)


def test_lazy_proxies_in_a_plugin_module_are_left_alone(plugin: Path) -> None:
    plugin.write_text("from flask import current_app\nfrom workers.steps import step\n@step\ndef f(): pass\n")
    assert "f" in load_catalogue("sample_plugin")


def test_a_function_that_takes_a_builtin_name_is_refused_naming_its_plugin(plugin: Path) -> None:
    plugin.write_text("from workers.steps import step\n@step('set')\ndef mine(): pass\n")
    with pytest.raises(ConfigurationError, match=r"'set' is registered twice.*sample_plugin"):
        load_catalogue("sample_plugin")


def test_entry_points_may_bring_decorated_functions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("installed_plugin")
    module.add = add  # type: ignore[attr-defined]
    load_catalogue.cache_clear()
    load_trigger_types.cache_clear()
    monkeypatch.setattr(
        "pluggy.PluginManager.load_setuptools_entrypoints",
        lambda manager, group: manager.register(module, "installed"),
    )
    assert load_catalogue("")["add"] is add
    load_catalogue.cache_clear()
    load_trigger_types.cache_clear()
