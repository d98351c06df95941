"""The doors through which step types and hooks come in, ours and a third party's alike.

A plugin is a module (or object) with any of the hooks below. It is found through the entry-point group
`orchestrator`, or by its name in `ORCHESTRATOR_PLUGINS=module[,module]`. Functions of such a module that are
decorated as steps need no hook. See workers/steps/contract.py for what a step type is.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, cast

import marshmallow
import pluggy

from orchestrator.errors import ConfigurationError

hookspec = pluggy.HookspecMarker("orchestrator")
hookimpl = pluggy.HookimplMarker("orchestrator")


SchemaClass = type[marshmallow.Schema]


@dataclass(frozen=True, slots=True)
class BodyInfo:
    """Steps that stand in the config of a step: `name` is the branch's ("" if there is just one), `place` the keys
    to them within the config, `steps` what is written there. `loops`: templates in it have `loop`. `limited`: see
    Body."""

    name: str
    place: tuple[str | int, ...]
    steps: Sequence[Mapping[str, Any]]
    loops: bool = False
    limited: bool = False


class StepTypeInfo(Protocol):
    """What the core needs to know of a step type: enough to validate and route, nothing to run."""

    @property
    def type(self) -> str: ...

    @property
    def queue(self) -> str:
        """Queue class: `control` (decided by the engine, no outside world), `io` or `cpu`."""

    @property
    def Config(self) -> SchemaClass: ...

    @property
    def raw_fields(self) -> frozenset[str]:
        """Fields of the config that are taken as written: templates in them are not rendered."""

    @property
    def expression_fields(self) -> frozenset[str]:
        """Fields of the config whose text is an expression even without braces; a dotted path (`cases.when`)
        passes through the items of lists."""

    @property
    def deferred_fields(self) -> frozenset[str]:
        """Fields of the config whose text is an expression that the type evaluates itself, when it likes."""

    def bodies(self, config: Mapping[str, object]) -> Iterable[BodyInfo]:
        """The steps that stand in `config`, which may not be valid."""

    @property
    def extra(self) -> str:
        """The optional extra that has what the type needs; "" if it needs none."""

    @property
    def modules(self) -> tuple[str, ...]:
        """What must be importable for the type to be performed."""

    def references(self, config: Mapping[str, object]) -> Iterable[tuple[str, str]]:
        """(path within config, step id) of each step that `config` names; those must depend on this one."""


class Hooks:
    """The hooks a plugin may implement, each a documented no-op here."""

    @hookspec
    def orchestrator_step_types(self) -> Iterable[StepTypeInfo]:  # type: ignore[empty-body]
        """The step types this plugin adds."""


Catalogue = Mapping[str, StepTypeInfo]


def load_plugins(modules: str) -> pluggy.PluginManager:
    """A manager with the installed plugins and those of `modules` (comma-separated module names).

    Raises ConfigurationError that names the module which cannot be imported, and why.
    """
    manager = pluggy.PluginManager("orchestrator")
    manager.add_hookspecs(Hooks)
    manager.load_setuptools_entrypoints("orchestrator")
    for name in filter(None, (part.strip() for part in modules.split(","))):
        try:
            module = importlib.import_module(name)
        except Exception as error:
            raise ConfigurationError(
                f"ORCHESTRATOR_PLUGINS names the module {name!r}, which cannot be imported: {error!r}"
            ) from error
        if not manager.is_registered(module):
            manager.register(module, name)
    return manager


def missing_modules(step_type: StepTypeInfo) -> list[str]:
    """What the type needs and is not installed here."""
    return [name for name in getattr(step_type, "modules", ()) if not _is_installed(name)]


@lru_cache(maxsize=64)
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@lru_cache(maxsize=8)
def load_catalogue(modules: str) -> Catalogue:
    """Every registered step type by its name. Raises ConfigurationError when two plugins claim one name."""
    manager = load_plugins(modules)
    catalogue: dict[str, StepTypeInfo] = {}
    for plugin, step_type in _registrations(manager):
        known = catalogue.setdefault(step_type.type, step_type)
        if known is not step_type:
            raise ConfigurationError(
                f"the step type {step_type.type!r} is registered twice, the second time by the plugin "
                f"{plugin}; remove one of the two from the plugins"
            )
    return catalogue


def _registrations(manager: pluggy.PluginManager) -> Iterator[tuple[str, StepTypeInfo]]:
    """(name of the plugin, step type) of all that the plugins bring, by hook or by decorated functions."""
    for implementation in manager.hook.orchestrator_step_types.get_hookimpls():
        for step_type in cast("Iterable[StepTypeInfo]", implementation.function()):
            yield implementation.plugin_name, step_type
    for name, plugin in manager.list_name_plugin():
        for value in list(getattr(plugin, "__dict__", {}).values()):
            # Asked of the class: a module may hold lazy proxies that answer, or raise, for any attribute.
            if getattr(type(value), "is_orchestrator_step", False) is True:
                yield name, value
