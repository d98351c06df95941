"""The JSON Schema of definitions says what loading them says, as far as shape decides."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from marshmallow import Schema, fields, validate

from orchestrator.definition import load_definition, read_definition
from orchestrator.definition.json_schema import json_schema
from orchestrator.errors import DefinitionError
from orchestrator.plugins import load_catalogue
from workers.steps import Done, StepContext, StepType, step
from workers.steps.database import Database

# ruff: noqa: E501  (a definition to a line reads best)

CATALOGUE = {"database": Database(), **load_catalogue("sample_steps")}
SCHEMA = json_schema(CATALOGUE)
VALIDATOR = Draft202012Validator(SCHEMA)
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


def read(text: str) -> Any:
    return read_definition(text, "yaml").data


def fits(document: Any) -> bool:
    return VALIDATOR.is_valid(document)


def loads(document: Any) -> bool:
    try:
        load_definition(document, CATALOGUE)
    except DefinitionError:
        return False
    return True


def one(step: str) -> Any:
    """A definition of one step, written without its id."""
    return read(f"steps: [{{id: a, {step}}}]")


# --- the schema itself ---------------------------------------------------------------------------------------


def test_it_is_a_schema_of_its_draft_with_an_id_without_a_host() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["$id"].startswith("urn:")
    assert SCHEMA["title"]


def test_the_same_types_make_the_same_schema_in_whatever_order_they_are_registered() -> None:
    turned = dict(reversed(CATALOGUE.items()))
    assert json.dumps(json_schema(turned)) == json.dumps(SCHEMA)


def test_every_reference_leads_somewhere_inside() -> None:
    def references(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            node = list(node.values())
        for item in node if isinstance(node, list) else []:
            yield from references(item)

    targets = {f"#/$defs/{name}" for name in SCHEMA["$defs"]}
    assert set(references(SCHEMA)) <= targets
    assert {"#/$defs/step", "#/$defs/config.http"} <= set(references(SCHEMA))


def test_it_knows_every_step_type_by_its_docstring() -> None:
    assert SCHEMA["$defs"]["step"]["properties"]["type"]["enum"] == sorted(CATALOGUE)
    for name in CATALOGUE:
        assert SCHEMA["$defs"][f"config.{name}"]["description"], name
    assert SCHEMA["$defs"]["config.set"]["description"] == "The output is the rendered mapping `values`."
    assert "\n" not in SCHEMA["$defs"]["config.parallel"]["description"].split("\n\n")[0]


def test_every_key_of_the_language_says_what_it_is() -> None:
    for shape in (
        SCHEMA,
        *(SCHEMA["$defs"][name] for name in ("step", "compensation", "retry_policy", "cache", "trigger")),
    ):
        for name, key in shape["properties"].items():
            assert key.get("description"), name


def test_every_pattern_is_one_that_javascript_knows_too() -> None:
    def patterns(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            yield from ([node["pattern"]] if isinstance(node.get("pattern"), str) else [])
            node = list(node.values())
        for item in node if isinstance(node, list) else []:
            yield from patterns(item)

    found = set(patterns(SCHEMA))
    assert len(found) > 5
    assert [pattern for pattern in found if "\\Z" in pattern or "(?i" in pattern or "(?P" in pattern] == []


# --- definitions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_examples_fit(file: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(read(file.read_text()))] == []


SPECIFIED_YAML = """
version: "1.0"
name: "数据处理工作流"
description: "自动化数据处理流程"

variables:
  input_file: ""
  output_dir: "/tmp/output"
  batch_size: 1000

steps:
  - id: "validate"
    name: "数据验证"
    type: "script"
    config:
      script: "validate.py"
      timeout: "5m"

  - id: "process"
    name: "数据处理"
    type: "agent"
    depends_on: ["validate"]
    config:
      agent_id: "data-processor"
      task: "process_data"
    input_mapping:
      file: "{{variables.input_file}}"
      batch_size: "{{variables.batch_size}}"

  - id: "notify"
    name: "发送通知"
    type: "email"
    depends_on: ["process"]
    config:
      to: "admin@example.com"
      subject: "数据处理完成"
      template: "process_complete"

triggers:
  - type: "schedule"
    name: "每日执行"
    config:
      cron: "0 2 * * *"
      timezone: "Asia/Shanghai"

  - type: "webhook"
    name: "手动触发"
    config:
      path: "/webhook/data-process"
      method: "POST"
"""
SPECIFIED_JSON = """
{
  "version": "1.0",
  "name": "API数据同步",
  "description": "定期同步外部API数据",
  "variables": {"api_endpoint": "https://api.example.com/data", "sync_interval": 3600},
  "steps": [
    {
      "id": "fetch_data",
      "name": "获取数据",
      "type": "http",
      "config": {
        "method": "GET",
        "url": "{{variables.api_endpoint}}",
        "headers": {"Authorization": "Bearer {{secrets.api_token}}"},
        "timeout": "30s"
      }
    },
    {
      "id": "transform_data",
      "name": "数据转换",
      "type": "script",
      "depends_on": ["fetch_data"],
      "config": {"script": "transform.js", "runtime": "node"},
      "input_mapping": {"raw_data": "{{steps.fetch_data.output.body}}"}
    },
    {
      "id": "save_data",
      "name": "保存数据",
      "type": "database",
      "depends_on": ["transform_data"],
      "config": {"operation": "insert", "table": "synced_data", "connection": "main_db"},
      "input_mapping": {"data": "{{steps.transform_data.output.result}}"}
    }
  ]
}
"""
SPECIFIED_STEPS = """
steps:
  - id: "analysis"
    name: "数据分析"
    type: "agent"
    config:
      agent_id: "data-analyst"
      task: "analyze_sales_data"
      timeout: "10m"
    input_mapping:
      data_file: "{{variables.input_file}}"
      analysis_type: "monthly"
  - id: "generate_summary"
    name: "生成报告摘要"
    type: "llm"
    depends_on: [analysis]
    config:
      model: "gpt-4"
      prompt: "请为以下数据生成摘要: {{steps.analysis.output.result}}"
      max_tokens: 500
  - id: "create_session"
    name: "创建对话会话"
    type: "mcp"
    config:
      action: "create_session"
      user_id: "{{input.user_id}}"
      agent_id: "{{variables.assistant_id}}"
variables: {input_file: "", assistant_id: ""}
"""
SPECIFIED_DEFINITION = """
version: "1.0"
variables: {input_file: "", output_dir: "/tmp/output"}
steps:
  - {id: step1, name: "数据验证", type: script, config: {script: "validate_data.py", timeout: "5m"}}
"""


@pytest.mark.parametrize("text", [SPECIFIED_YAML, SPECIFIED_JSON, SPECIFIED_STEPS, SPECIFIED_DEFINITION])
def test_the_definitions_of_the_specification_fit(text: str) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(read(text))] == []


EVERYTHING = """
version: 1.0
name: all of it
tags: [a, b]
variables: {region: eu, many: [1, 2]}
timeout: 30m
outputs: {x: "{{ steps.fetch.output.body }}"}
inputs: {type: object, properties: {day: {type: string}}}
steps:
  - id: fetch
    type: http
    description: it fetches
    timeout: 30s
    retry_policy: {max_attempts: 3, initial_delay: 1s, max_delay: 5, backoff_factor: 2.5, jitter: 0.1, retry_on: [timeout]}
    on_error: continue
    when: input.full
    trigger_rule: all_done
    output_mapping: {total: "{{ output.body.total }}"}
    priority: 9
    queue: gpu
    cache: {key: ["{{ input.day }}"], ttl: 1h}
    compensate: {type: set, config: {values: {}}, priority: 1}
    config:
      url: "https://example.com/{{ input.day }}"
      method: post
      headers: {X-Number: 5, X-Text: "{{ input.day }}"}
      params: {a: [1, 2], b: null}
      json: {a: "{{ input.a }}"}
      timeout: "{{ input.timeout }}"
      auth: {type: basic, username: u, password: "{{ secrets.p }}"}
      verify: "{{ input.verify }}"
      expected_status: [200, "201-204"]
  - {id: choice, type: condition, depends_on: fetch, config: {cases: [{when: "input.x > 1", then: each}], else: [fork]}}
  - id: each
    type: loop
    depends_on: [choice]
    config:
      items: "{{ variables.many }}"
      concurrency: "{{ input.n }}"
      collect: false
      steps:
        - {id: inner, type: script, config: {source: "echo {{ not a template }}", runtime: bash, args: [1, true, x]}}
        - id: again
          type: loop
          depends_on: inner
          config: {while: "loop.index < 3", max_iterations: 5, steps: [{id: nap, type: nap, config: {seconds: 0.5}}]}
  - id: fork
    type: parallel
    depends_on: [choice]
    config:
      branches:
        left: [{id: l, type: wait, config: {duration: 5}}]
        right-hand: [{id: r, type: wait, config: {until: "2030-01-01T08:00:00+01:00"}}]
  - {id: ask, type: approval}
  - {id: told, type: signal, config: {name: go, timeout: 1h30m, default: {a: 1}}}
  - {id: child, type: workflow, config: {workflow: other, input: {}, wait: "no"}}
  - {id: call, type: mcp, config: {action: x, anything: {at: all}}}
  - {id: talk, type: talk, config: {lines: [a, b]}}
  - {id: write, type: database, config: {connection: m, operation: query, sql: "select 1 where :x = 1", params: {x: 1}}}
  - {id: mail, type: email, config: {to: [a@example.com], cc: b@example.com, subject: 5, text: t, attachments: [{filename: a, content: {}}]}}
on_failure: [{id: sorry, type: set, config: {values: {}}}]
finally: [{id: done, type: set, config: {values: {x: "{{ steps.fetch.status }}"}}}]
triggers: [{type: schedule, name: daily, config: {cron: "0 2 * * *"}, is_enabled: false}]
"""


def test_a_definition_that_uses_all_of_the_language_fits_and_loads() -> None:
    document = read(EVERYTHING)
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []
    load_definition(document, CATALOGUE)


SET = "type: set, config: {values: {}}"


@pytest.mark.parametrize(
    "text",
    [
        f"steps: [{{id: a, {SET}}}]",
        "steps: [{id: a, type: approval}]",
        "steps: [{id: a, type: approval, config: null, depends_on: null, name: null, retry_policy: null, compensate: null}]",
        f"steps: [{{id: a, {SET}}}]\nversion: 2",
        f"steps: [{{id: a, {SET}, timeout: 1h30m}}]",
        f"steps: [{{id: a, {SET}, timeout: 0.5}}]",
        "steps: [{id: a, type: http, config: {url: 'http://x', verify: 'yes'}}]",
        "steps: [{id: a, type: http, config: {url: 'http://x', timeout: '{{ input.t }}'}}]",
        "steps: [{id: a, type: http, config: {url: 'http://x', headers: '{{ input.h }}'}}]",
        "steps: [{id: a, type: http, config: {url: 'http://x', expected_status: 404}}]",
        "steps: [{id: a, type: llm, config: {prompt: x, temperature: '0.5'}}]",
        "steps: [{id: a, type: llm, config: {prompt: x, stop: [a, b]}}]",
        "steps: [{id: a, type: nap, config: {seconds: 1}}]",
        "steps: [{id: a, type: fibonacci, config: {n: '{% if input.x %}1{% endif %}'}}]",
        "steps: [{id: a, type: mark, config: {file: x}}]",
    ],
)
def test_both_take_it(text: str) -> None:
    document = read(text)
    assert (fits(document), loads(document)) == (True, True)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "steps: []",
        "steps: {id: a, type: approval}",
        f"steps: [{{id: a, {SET}}}]\nstepz: []",
        f"steps: [{{id: a, {SET}}}]\nfinally: []",
        f"steps: [{{id: a, {SET}}}]\ntimeout: soon",
        f"steps: [{{id: a, {SET}}}]\nversion: [1]",
        f"steps: [{{id: a, {SET}}}]\nvariables: [1]",
        f"steps: [{{id: a, {SET}}}]\ntags: [1]",
        f"steps: [{{id: a, {SET}}}]\ninputs: text",
        f"steps: [{{id: a, {SET}}}]\ntriggers: [{{name: x}}]",
        f"steps: [{{id: a, {SET}}}]\ntriggers: [{{type: x, is_enabled: 1}}]",
        f"steps: [{{{SET}}}]",
        f"steps: [{{id: 5, {SET}}}]",
        f"steps: [{{id: 1a, {SET}}}]",
        f"steps: [{{id: finally, {SET}}}]",
        "steps: [{id: a}]",
        "steps: [{id: a, type: nonsense}]",
        "steps: [{id: a, type: '{{ input.type }}'}]",
        f"steps: [{{id: a, {SET}, dependson: b}}]",
        f"steps: [{{id: a, {SET}, depends_on: 5}}]",
        f"steps: [{{id: a, {SET}, depends_on: [5]}}]",
        f"steps: [{{id: a, {SET}, trigger_rule: all_failed}}]",
        f"steps: [{{id: a, {SET}, on_error: ignore}}]",
        f"steps: [{{id: a, {SET}, priority: 11}}]",
        f"steps: [{{id: a, {SET}, priority: high}}]",
        f"steps: [{{id: a, {SET}, queue: 'a b'}}]",
        f"steps: [{{id: a, {SET}, timeout: 5 minutes}}]",
        f"steps: [{{id: a, {SET}, timeout: 0}}]",
        f"steps: [{{id: a, {SET}, timeout: '{{{{ input.t }}}}'}}]",
        f"steps: [{{id: a, {SET}, name: {'x' * 501}}}]",
        f"steps: [{{id: a, {SET}, output_mapping: {{a-b: 1}}}}]",
        f"steps: [{{id: a, {SET}, cache: {{key: x}}}}]",
        f"steps: [{{id: a, {SET}, cache: {{key: x, ttl: 0.5}}}}]",
        f"steps: [{{id: a, {SET}, retry_policy: {{max_attempts: 0}}}}]",
        f"steps: [{{id: a, {SET}, retry_policy: {{max_attempts: 1.5}}}}]",
        f"steps: [{{id: a, {SET}, retry_policy: {{attempts: 3}}}}]",
        f"steps: [{{id: a, {SET}, retry_policy: {{jitter: 2}}}}]",
        f"steps: [{{id: a, {SET}, compensate: {{config: {{}}}}}}]",
        f"steps: [{{id: a, {SET}, compensate: {{type: set}}}}]",
        f"steps: [{{id: a, {SET}, compensate: {{type: set, id: b, config: {{values: {{}}}}}}}}]",
        "steps: [{id: a, type: approval, compensate: {type: loop, config: {items: [1], steps: [{id: b, type: approval}]}}}]",
        "steps: [{id: a, type: set}]",
        "steps: [{id: a, type: set, config: null}]",
        "steps: [{id: a, type: set, config: [1]}]",
        "steps: [{id: a, type: approval, config: '{{ input.x }}'}]",
        "steps: [{id: a, type: set, config: {values: 5}}]",
        "steps: [{id: a, type: set, config: {values: {}, valves: {}}}]",
        "steps: [{id: a, type: http, config: {url: 5}}]",
        "steps: [{id: a, type: http, config: {url: 'http://x', timeout: soon}}]",
        "steps: [{id: a, type: http, config: {url: 'http://x', verify: maybe}}]",
        "steps: [{id: a, type: http, config: {url: 'http://x', headers: {X: [1]}}}]",
        "steps: [{id: a, type: http, config: {url: 'http://x', auth: {type: digest}}}]",
        "steps: [{id: a, type: http, config: {url: 'http://x', expected_status: ok}}]",
        "steps: [{id: a, type: script, config: {script: x, runtime: perl}}]",
        "steps: [{id: a, type: llm, config: {prompt: x, max_tokens: many}}]",
        "steps: [{id: a, type: llm, config: {prompt: x, temperature: 3}}]",
        "steps: [{id: a, type: llm, config: {messages: [{role: robot, content: x}]}}]",
        "steps: [{id: a, type: condition, config: {expression: x, then: 5}}]",
        "steps: [{id: a, type: wait, config: {until: 5}}]",
        "steps: [{id: a, type: nap, config: {seconds: long}}]",
        "steps: [{id: a, type: fibonacci, config: {}}]",
        "steps: [{id: a, type: loop, config: {items: [1]}}]",
        "steps: [{id: a, type: loop, config: {items: [1], steps: []}}]",
        "steps: [{id: a, type: loop, config: {items: [1], steps: '{{ input.steps }}'}}]",
        "steps: [{id: a, type: loop, config: {items: [1], concurrency: 0, steps: [{id: b, type: approval}]}}]",
        "steps: [{id: a, type: loop, config: {items: [1], steps: [{id: b, type: nonsense}]}}]",
        "steps: [{id: a, type: loop, config: {items: [1], steps: [{type: approval}]}}]",
        "steps: [{id: a, type: loop, config: {items: [1], steps: [{id: b, type: approval, wen: x}]}}]",
        "steps: [{id: a, type: loop, config: {items: [1], steps: [{id: b, type: set, config: {valves: {}}}]}}]",
        "steps: [{id: a, type: parallel, config: {branches: {}}}]",
        "steps: [{id: a, type: parallel, config: {branches: {l: []}}}]",
        "steps: [{id: a, type: parallel, config: {branches: {'a b': [{id: b, type: approval}]}}}]",
        "steps: [{id: a, type: parallel, config: {branches: {l: [{id: b, type: set, config: {values: 1}}]}}}]",
        "steps: [{id: a, type: parallel, config: {branches: {l: [{id: b, type: loop, config: {items: [], steps: [{id: 1}]}}]}}}]",
        f"steps: [{{id: a, {SET}}}]\non_failure: [{{id: b, type: nonsense}}]",
    ],
)
def test_both_refuse_it(text: str) -> None:
    document = read(text)
    assert (fits(document), loads(document)) == (False, False)


def test_a_mistake_is_found_where_it_is() -> None:
    document = one("type: loop, config: {items: [1], steps: [{id: b, type: set, config: {values: {}, valves: 1}}]}")
    (error,) = VALIDATOR.iter_errors(document)
    assert list(error.absolute_path) == ["steps", 0, "config", "steps", 0, "config"]
    assert "valves" in error.message


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*at, key)
        yield from places(inner, (*at, key))


WHOLE = read(EVERYTHING)
VALUES = [
    None,
    True,
    0,
    1,
    7,
    -1,
    2.5,
    "",
    "x",
    "5",
    "yes",
    "30s",
    "{{ input.x }}",
    "a b",
    [],
    [1],
    ["x"],
    {},
    {"x": 1},
]


@given(st.sampled_from(list(places(WHOLE))), st.sampled_from([*VALUES, KeyError]))
def test_what_does_not_fit_does_not_load(place: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(WHOLE)
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    if value is KeyError:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    if not fits(document):
        assert not loads(document)


# --- other people's step types -------------------------------------------------------------------------------


class Branch(Schema):
    label = fields.String(required=True)
    inner = fields.Nested(lambda: Branch())


class Odd(StepType):
    type = "their/odd type~1"

    class Config(Schema):
        class Meta:
            description = "what it is for"  # with which apispec forgets about unknown keys

        tree = fields.Nested(Branch)
        several = fields.List(fields.String(), validate=validate.ContainsOnly(["a", "b"]))
        colour = fields.String(validate=validate.OneOf({"red", "green", "blue"}))
        word = fields.String(validate=validate.Regexp(r"(?i)[a-z]+\Z"))
        moments = fields.Dict(values=fields.DateTime(format="timestamp"), load_default={1: object()})
        pair = fields.Tuple((fields.Integer(), fields.String()), load_default=(object(),))

    def perform(self, context: StepContext) -> Done:
        return Done(None)


@step("wordless")
def wordless(limit: int | None = None, names: dict[str, list[int]] | None = None) -> None: ...


def test_a_plugins_type_is_in_it_and_its_config_is_checked() -> None:
    schema = Draft202012Validator(json_schema(CATALOGUE))
    assert schema.is_valid(one("type: fail, config: {message: x, until_attempt: 3}"))
    assert not schema.is_valid(one("type: fail, config: {message: x, until_attempt: soon}"))
    assert not schema.is_valid(one("type: fail, config: {massage: x}"))
    assert SCHEMA["$defs"]["config.fail"]["description"] == "Fail every attempt before number `until_attempt`."


def test_a_type_may_have_any_name_and_any_schema() -> None:
    schema = json_schema({**CATALOGUE, Odd.type: Odd(), "wordless": wordless})
    Draft202012Validator.check_schema(schema)
    config = schema["$defs"]["config.their/odd type~1"]
    assert config["description"] == "what it is for"
    assert config["properties"]["colour"]["anyOf"][0]["enum"] == ["blue", "green", "red"]
    assert schema["$defs"]["config.wordless"]["description"] == "wordless"

    def is_valid(config: Any) -> bool:
        document = {"steps": [{"id": "a", "type": Odd.type, "config": config}]}
        return Draft202012Validator(schema).is_valid(document)

    assert is_valid({"tree": {"label": "x", "inner": {"label": "y", "inner": {}}}})
    assert is_valid({"several": ["a", "a"], "word": "ABC", "pair": [1, "x"], "moments": {"x": 5}})
    assert not is_valid({"tree": {"inner": {}}})
    assert not is_valid({"colour": "grey"})
    assert not is_valid({"unknown": 1})


def test_a_step_has_a_type_or_uses_a_template() -> None:
    assert fits(one("uses: t, with: {x: 1}, config: {whatever: 1}, on_error: continue"))
    assert fits(one("type: set, config: {values: {}}, compensate: {uses: t}"))
    assert not fits(one("uses: t, type: set, config: {values: {}}"))
    assert not fits(one("uses: 1"))
    assert not fits(one("uses: t, with: [1]"))
    assert not fits(one("name: neither"))
