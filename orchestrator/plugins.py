"""The doors through which step types, trigger types and hooks come in, ours and a third party's alike.

A plugin is a module (or object) with any of the hooks below. It is found through the entry-point group
`orchestrator`, or by its name in `ORCHESTRATOR_PLUGINS=module[,module]`. Functions of such a module that are
decorated as steps need no hook. See workers/steps/contract.py for what a step type is, and
beat/triggers/contract.py for a trigger type.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import marshmallow
import pluggy

from orchestrator.errors import ConfigurationError

if TYPE_CHECKING:
    from orchestrator.engine.slots import Timetable

hookspec = pluggy.HookspecMarker("orchestrator")
hookimpl = pluggy.HookimplMarker("orchestrator")


SchemaClass = type[marshmallow.Schema]
Overlap = Literal["allow", "skip", "queue_one", "cancel_other"]


@dataclass(frozen=True, slots=True)
class Missed:
    """`run_all`: the newest `limit` of them."""

    policy: Literal["skip", "run_last", "run_all"] = "run_last"
    limit: int = 100


@dataclass(frozen=True, slots=True)
class Found:
    """What a trigger has found and an execution is to be started for. `slot` names it: what was found before, by
    whomever, starts nothing again. `payload` is what came; `input` None takes what the type says."""

    slot: str
    payload: Any = None
    input: Any = None


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of a look. `state` (plain JSON) is for the next one; it is kept once all that was `found` is fired."""

    found: Sequence[Found] = ()
    state: Any = None


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


class TriggerTypeInfo(Protocol):
    """What the core needs to know of a trigger type. `config` is as it was written, and valid, unless said
    otherwise."""

    @property
    def type(self) -> str: ...

    @property
    def Config(self) -> SchemaClass: ...

    @property
    def secret_fields(self) -> frozenset[str]:
        """Fields of the config (dotted paths) that nobody is shown."""

    def check(self, config: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
        """(path within config, what is wrong) of what the schema does not see; it has found nothing."""

    def input(self, config: Mapping[str, Any]) -> Any:
        """What an execution gets as its input when nothing else says."""

    def overlap(self, config: Mapping[str, Any]) -> Overlap:
        """What happens when it fires while an execution that it started has not ended."""

    def timetable(self, config: Mapping[str, Any], trigger_id: str) -> Timetable | None:
        """When it is due by time; None if time is not what fires it."""

    def missed(self, config: Mapping[str, Any]) -> Missed:
        """What is done about slots that passed while nothing could fire."""

    @property
    def looks(self) -> bool:
        """What is due by its timetable is a look, taken by a worker; nothing is started before that says so."""

    def look(self, config: Mapping[str, Any], state: Any) -> Looked:
        """What there is to be found since the look that left `state`; None before the first."""


@dataclass(frozen=True, slots=True)
class ExecutionEvent:
    """What a hook gets to know of an execution: ids are texts, values plain JSON, secrets masked. What is in it is
    the plugin's own copy."""

    id: str
    workflow_id: str
    version: int
    status: str
    """`running`, then `completed`, `failed` or `cancelled`."""
    input: Any = None
    output: Any = None
    error_message: str | None = None
    duration: float | None = None
    """Seconds from its first step to its end."""


@dataclass(frozen=True, slots=True)
class StepEvent:
    """What a hook gets to know of an attempt at a step, likewise."""

    execution_id: str
    step_execution_id: str
    path: str
    """The step's place in the execution: `loop1[3].fetch`."""
    step_id: str
    type: str
    attempt: int
    """1 for the first attempt."""
    status: str
    """`running`, then `completed`, `failed` or `skipped` (its `when` was not true)."""
    output: Any = None
    error_kind: str | None = None
    error_message: str | None = None
    """Why it failed or was skipped."""
    retries: bool = False
    """Whether a failed attempt is followed by another one."""
    duration: float | None = None
    """Seconds that it was performed for; of a step that rested in between, since it last went on. None if the worker
    that performed it did not live to tell."""


class Hooks:
    """The hooks a plugin may implement, each a documented no-op here.

    The four that tell of executions and steps are called in the workers, after the commit of what they tell of, and
    only by who won the record: of one end they tell once. They are told in the background, by a thread for each
    plugin in each worker process: nothing waits for them, and an exception is logged and counted. So calls of one
    process come in their order, those of several processes may not; and what a worker had not told yet when it was
    killed, or what a plugin is too slow to take (docs/plugins.md), is not told again. The database is the truth.
    """

    @hookspec
    def orchestrator_step_types(self) -> Iterable[StepTypeInfo]:  # type: ignore[empty-body]
        """The step types this plugin adds."""

    @hookspec
    def orchestrator_trigger_types(self) -> Iterable[TriggerTypeInfo]:  # type: ignore[empty-body]
        """The trigger types this plugin adds."""

    @hookspec
    def workflow_started(self, execution: ExecutionEvent) -> None:
        """The first step of an execution was taken on. Not of one that ended before that."""

    @hookspec
    def step_started(self, step: StepEvent) -> None:
        """A worker took on a step: once for each attempt, and not again when one that rested (with a state) goes on."""

    @hookspec
    def step_completed(self, step: StepEvent) -> None:
        """An attempt has ended, in whatever way. Not of a step that no worker took on (a branch not taken, one behind
        a failure), nor of one that was cancelled."""

    @hookspec
    def workflow_completed(self, execution: ExecutionEvent) -> None:
        """An execution has ended, in whatever way. Of one that a user cancels in the API: if steps run at its end."""


Catalogue = Mapping[str, StepTypeInfo]
TriggerCatalogue = Mapping[str, TriggerTypeInfo]


class Types(dict[str, StepTypeInfo]):
    """A catalogue with the trigger types of the same plugins; without these, triggers in definitions go unchecked."""

    triggers: TriggerCatalogue


def load_plugins(modules: str) -> pluggy.PluginManager:
    """A manager with the installed plugins and those of `modules` (comma-separated module names).

    Raises ConfigurationError that names the plugin which cannot be imported, or whose hooks are not ours, and why.
    """
    manager = pluggy.PluginManager("orchestrator")
    manager.add_hookspecs(Hooks)
    try:
        _register(manager, modules)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise ConfigurationError(f"a plugin implements a hook that does not fit: {error}") from error
    return manager


def _register(manager: pluggy.PluginManager, modules: str) -> None:
    try:
        manager.load_setuptools_entrypoints("orchestrator")
    except pluggy.PluginValidationError:
        raise
    except Exception as error:
        known = {name for name, _ in manager.list_name_plugin()}
        name = next((entry.name for entry in entry_points(group="orchestrator") if entry.name not in known), "?")
        raise ConfigurationError(f"the installed plugin {name!r} cannot be imported: {error!r}") from error
    for name in filter(None, (part.strip() for part in modules.split(","))):
        try:
            module = importlib.import_module(name)
        except Exception as error:
            raise ConfigurationError(
                f"ORCHESTRATOR_PLUGINS names the module {name!r}, which cannot be imported: {error!r}"
            ) from error
        if not manager.is_registered(module):
            manager.register(module, name)


def cancels(step_type: StepTypeInfo) -> bool:
    """Whether the type can cancel what an attempt has begun elsewhere."""
    return bool(getattr(step_type, "cancels", False))


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
    catalogue = Types()
    catalogue.triggers = load_trigger_types(modules)
    for plugin, step_type in _registrations(manager):
        known = catalogue.setdefault(step_type.type, step_type)
        if known is not step_type:
            raise ConfigurationError(
                f"the step type {step_type.type!r} is registered twice, the second time by the plugin "
                f"{plugin}; remove one of the two from the plugins"
            )
    return catalogue


@lru_cache(maxsize=8)
def load_trigger_types(modules: str) -> TriggerCatalogue:
    """Every registered trigger type by its name. Raises ConfigurationError when two plugins claim one name."""
    manager = load_plugins(modules)
    catalogue: dict[str, TriggerTypeInfo] = {}
    for implementation in manager.hook.orchestrator_trigger_types.get_hookimpls():
        for trigger_type in cast("Iterable[TriggerTypeInfo]", implementation.function()):
            if catalogue.setdefault(trigger_type.type, trigger_type) is not trigger_type:
                raise ConfigurationError(
                    f"the trigger type {trigger_type.type!r} is registered twice, the second time by the plugin "
                    f"{implementation.plugin_name}; remove one of the two from the plugins"
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
