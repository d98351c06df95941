"""Every example of the specification as it is written there, from its request to its end.

`spec/` holds them word for word. What stands in them for something else (`{id}`, `user-uuid`, `[...]`) is replaced
where they are sent, and so is the one address that must lead to a server of ours.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import indent
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from counterparts import FINDINGS, RECORDS, SUMMARY, TOKEN, Counterparts, counterparts
from deployment import Deployment, deployed, wait_until
from werkzeug.test import TestResponse

from orchestrator.config import (
    AgentSettings,
    ConnectionSettings,
    EmailSettings,
    LlmSettings,
    McpServerSettings,
    McpSettings,
    Settings,
    load_settings,
)
from workers.secrets import MASK

SPEC = Path(__file__).parent / "spec"

SCRIPTS = {
    "validate.py": """
import json, sys
print(json.dumps({"valid": json.load(sys.stdin)["input_file"].endswith(".csv")}))
""",
    "transform.js": """
const {raw_data} = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.error(`${raw_data.records.length} records, as ${raw_data.authorization}`);
console.log(JSON.stringify(raw_data.records.map(({id, name, price}) => ({id, name, price: Number(price)}))));
""",
    # It has its data when the test says so.
    "validate_data.py": """
import json, sys, time
from pathlib import Path
given = json.load(sys.stdin)
file = Path(__file__).with_name(given["input_file"])
print("validating", file.name)
while not file.exists():
    time.sleep(0.02)
print(json.dumps({"rows": len(file.read_text().splitlines()), "batch": given["parameters"]["batch_size"]}))
""",
}
TEMPLATES = {
    "process_complete.txt": "{{ input.input_file }} 处理完成 ({{ execution.id }})\n",
    "process_complete.html": "<p><b>{{ input.input_file }}</b> 处理完成</p>\n",
}


@pytest.fixture(scope="module")
def them() -> Iterator[Counterparts]:
    with counterparts() as them:
        yield them


@pytest.fixture(scope="module")
def spec(them: Counterparts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with the specification's own configuration, in which its examples find whom they name."""
    folder = tmp_path_factory.mktemp("spec")
    for place, files in (("scripts", SCRIPTS), ("templates", TEMPLATES)):
        (folder / place).mkdir()
        for name, content in files.items():
            (folder / place / name).write_text(content, encoding="utf-8")
    with deployed(folder, adjusted=lambda settings: as_specified(settings, them)) as deployment:
        with pytest.MonkeyPatch.context() as patch:  # the workers' alone: the API has no use for it
            patch.setenv("ORCHESTRATOR_SECRET_API_TOKEN", TOKEN)
            deployment.start_worker("control,cpu")
            deployment.start_worker("io", pool="threads", concurrency=4)
        deployment.sql("CREATE TABLE synced_data (id integer PRIMARY KEY, name text NOT NULL, price numeric NOT NULL)")
        yield deployment


def as_specified(settings: Settings, them: Counterparts) -> Settings:
    written = load_settings({}, SPEC / "config.yaml")
    # Written as in the example.
    url = sa.make_url(settings.database.url).set(drivername="postgres").update_query_dict({"sslmode": "disable"})
    database = replace(settings.database, url=url.render_as_string(hide_password=False))
    folders = {name: getattr(settings.executor, name) for name in ("scripts_dir", "templates_dir")}
    return replace(
        settings,
        port=written.port,
        database=database,
        scheduler=replace(written.scheduler, poll_interval=settings.scheduler.poll_interval),
        executor=replace(written.executor, **folders),
        connections={"main_db": ConnectionSettings(url=database.url)},
        email=EmailSettings(host="127.0.0.1", port=them.mail_port, security="none", sender="noah@example.com"),
        agents={
            "data-processor": AgentSettings(url=them.agent, poll_interval=0.05),
            "data-analyst": AgentSettings(url=f"{them.web}/data-analyst", protocol="http"),
        },
        llm=LlmSettings(base_url=f"{them.web}/v1", api_key="sk-0123456789"),
        mcp=McpSettings(servers={"sessions": McpServerSettings(url=them.mcp)}),
    )


@pytest.fixture
def data(spec: Deployment) -> Iterator[Path]:
    """What validate_data.py waits for; not there yet."""
    file = spec.folder / "scripts" / "data.csv"
    yield file
    file.unlink(missing_ok=True)


def example(name: str) -> str:
    return (SPEC / name).read_text(encoding="utf-8")


def send(deployment: Deployment, title: str, replacing: Mapping[str, str] | None = None) -> list[TestResponse]:
    """The answers to the requests that stand under `title` in the specification, sent one after the other."""
    found = re.search(rf"^#### {title}\n```http\n(.*?)^```$", example("api.md"), re.MULTILINE | re.DOTALL)
    assert found is not None, title
    text = found[1]
    for placeholder, value in (replacing or {}).items():
        assert placeholder in text
        text = text.replace(placeholder, value)
    return [sent(deployment, request) for request in re.split(r"^(?=[A-Z]+ /)", text, flags=re.MULTILINE)[1:]]


def sent(deployment: Deployment, request: str) -> TestResponse:
    head, _, body = request.partition("\n\n")
    first, *headers = head.splitlines()
    method, path = first.split(" ")
    return deployment.client.open(
        path, method=method, headers=[tuple(line.split(": ")) for line in headers], data=body.encode() or None
    )


def one(deployment: Deployment, title: str, replacing: Mapping[str, str] | None = None, status: int = 200) -> Any:
    """The same of a single request: what it answers."""
    [answer] = send(deployment, title, replacing)
    assert answer.status_code == status, answer.text
    return answer.json


def created(deployment: Deployment, document: str, media: str = "yaml") -> Any:
    answer = deployment.client.post(
        "/api/v1/workflows", data=document.encode(), content_type=f"application/{media}; charset=utf-8"
    )
    assert answer.status_code == 201, answer.text
    return answer.json


def run(deployment: Deployment, workflow: Mapping[str, Any], input: Mapping[str, Any] | None = None) -> Any:
    """An execution of it, as the API shows it at its end."""
    return ended(deployment, deployment.execute(workflow["id"], dict(input or {})))


def ended(deployment: Deployment, execution_id: str, status: str = "completed") -> Any:
    deployment.ended(execution_id)
    execution = deployment.client.get(f"/api/v1/executions/{execution_id}").json
    said = {step["path"]: step["error_message"] for step in execution["step_executions"]}
    assert execution["status"] == status, said
    return execution


def steps_of(execution: Mapping[str, Any]) -> dict[str, Any]:
    return {step["path"]: step for step in execution["step_executions"]}


def new_workflow(deployment: Deployment) -> str:
    """Made by the specification's request, for somebody new; its id."""
    workflow_id: str = one(deployment, "创建工作流", {"user-uuid": str(uuid4())}, 201)["id"]
    return workflow_id


def slots_of(deployment: Deployment, trigger: Mapping[str, Any]) -> list[str]:
    """The time of day of its next slot, by its own clock."""
    answer = deployment.client.get(f"/api/v1/triggers/{trigger['id']}/preview?count=1")
    return [item["local"].partition("T")[2] for item in answer.json["items"]]


def started(deployment: Deployment, workflow_id: str) -> Any:
    """An execution started by the specification's request, once its step runs."""
    execution = one(deployment, "手动执行工作流", {"{id}": workflow_id}, 202)
    wait_until(lambda: deployment.statuses(execution["id"]) == {"step1": "running"}, what="the script")
    return execution


# --- the formats of a definition ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processing(spec: Deployment) -> Any:
    """The workflow of the YAML example: its webhook's path is free for one."""
    return created(spec, example("data_processing.yaml"))


def test_the_yaml_example_validates_processes_and_notifies(
    spec: Deployment, them: Counterparts, processing: Any
) -> None:
    assert (processing["name"], processing["description"]) == ("数据处理工作流", "自动化数据处理流程")
    execution = run(spec, processing, {"input_file": "data.csv"})
    steps = steps_of(execution)
    assert list(steps) == ["validate", "process", "notify"]
    assert steps["validate"]["output"]["result"] == {"valid": True}
    assert steps["process"]["output"]["result"] == {"batches": 3, "of": 1000}
    assert them.asked_of("data-processor") == [("process_data", {"file": "data.csv", "batch_size": 1000})]
    [email] = them.emails
    assert (email["To"], email["From"], email["Subject"]) == ("admin@example.com", "noah@example.com", "数据处理完成")
    texts = {part.get_content_type(): part.get_payload(decode=True) for part in email.walk()}
    assert texts["text/plain"] == f"data.csv 处理完成 ({execution['id']})".encode() + b"\r\n"
    assert texts["text/html"] == "<p><b>data.csv</b> 处理完成</p>".encode() + b"\r\n"
    assert execution["output"] == {"notify": steps["notify"]["output"]}
    assert steps["notify"]["output"]["to"] == ["admin@example.com"]


def test_the_triggers_of_the_yaml_example_start_it(spec: Deployment, processing: Any) -> None:
    answer = spec.client.get(f"/api/v1/workflows/{processing['id']}/triggers")
    daily, webhook = answer.json["items"]
    assert (daily["name"], webhook["name"], webhook["type"]) == ("每日执行", "手动触发", "webhook")
    assert slots_of(spec, daily) == ["02:00:00+08:00"]
    anybody = {"Authorization": ""}
    refused = spec.client.post("/webhook/data-process", json={"input_file": "data.csv"}, headers=anybody)
    assert (refused.status_code, refused.json["detail"]) == (409, "the workflow is draft")
    spec.client.post(f"/api/v1/workflows/{processing['id']}/activate")

    accepted = spec.client.post("/webhook/data-process", json={"input_file": "data.csv"}, headers=anybody)

    assert accepted.status_code == 202, accepted.text
    execution = ended(spec, accepted.json["execution_id"])
    assert execution["trigger_id"] == webhook["id"]
    assert steps_of(execution)["process"]["output"]["result"] == {"batches": 3, "of": 1000}
    shown = spec.client.get(f"/api/v1/triggers/{webhook['id']}").json
    assert (shown["trigger_count"], shown["last_triggered"] is None) == (1, False)


@pytest.fixture(scope="module")
def synced(spec: Deployment, them: Counterparts) -> Any:
    """An execution of the JSON example."""
    # The address is changed and nothing else: the example's own is not on loopback.
    document = example("api_sync.json").replace("https://api.example.com/", f"{them.web}/")
    return run(spec, created(spec, document, "json"))


def test_the_json_example_saves_what_it_fetched(spec: Deployment, them: Counterparts, synced: Any) -> None:
    steps = steps_of(synced)
    assert {path: step["status"] for path, step in steps.items()} == dict.fromkeys(
        ("fetch_data", "transform_data", "save_data"), "completed"
    )
    assert them.asked_of("/data") == [f"Bearer {TOKEN}"]
    rows = [{**record, "price": float(record["price"])} for record in RECORDS]
    assert steps["fetch_data"]["output"]["body"]["records"] == RECORDS
    assert steps["transform_data"]["output"] == {"result": rows, "exit_code": 0}
    assert steps["save_data"]["input"] == {"data": rows}
    assert synced["output"] == {"save_data": {"row_count": 2}}
    saved = spec.sql("SELECT id, name, price FROM synced_data ORDER BY id")
    assert [(row.id, row.name, float(row.price)) for row in saved] == [tuple(row.values()) for row in rows]


def test_the_secret_of_the_json_example_is_in_no_answer(spec: Deployment, synced: Any) -> None:
    assert steps_of(synced)["fetch_data"]["output"]["body"]["authorization"] == f"Bearer {MASK}"
    paths = [f"workflows/{synced['workflow_id']}", "workflows", "executions", f"executions/{synced['id']}"]
    paths += [f"executions/{synced['id']}/logs?step_id=transform_data"]
    for step in synced["step_executions"]:
        paths += [f"step-executions/{step['id']}", f"step-executions/{step['id']}/output"]
    answers = {path: spec.client.get(f"/api/v1/{path}") for path in paths}
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(paths, 200)
    assert [path for path, answer in answers.items() if TOKEN in answer.text] == []
    [line] = answers[f"executions/{synced['id']}/logs?step_id=transform_data"].json["items"][:1]
    assert line["message"] == f"2 records, as Bearer {MASK}"


# --- with the other modules --------------------------------------------------------------------------------------


def test_the_agent_example_has_the_agent_analyse_the_file(spec: Deployment, them: Counterparts) -> None:
    before = len(them.asked_of("/data-analyst"))
    head = "name: 数据分析\nvariables: {input_file: sales.csv}\n"
    execution = run(spec, created(spec, head + example("agent.yaml")))
    [asked] = them.asked_of("/data-analyst")[before:]
    assert (asked["agent_id"], asked["task"]) == ("data-analyst", "analyze_sales_data")
    assert asked["input"] == {"data_file": "sales.csv", "analysis_type": "monthly"}
    assert execution["output"]["analysis"]["result"] == FINDINGS


REPORT = """name: 报告
variables: {input_file: sales.csv}
"""
BRANCH = """
  - id: report
    type: parallel
    depends_on: analysis
    config:
      branches:
        summary:
"""


def test_the_llm_example_summarises_what_the_analysis_found(spec: Deployment, them: Counterparts) -> None:
    # Its step names no dependency, so it stands where what it tells of is done: in a branch that begins after it.
    summary = indent(example("llm.yaml").removeprefix("steps:\n"), " " * 8)
    execution = run(spec, created(spec, REPORT + example("agent.yaml") + BRANCH + summary))
    [asked] = them.asked_of("/v1/chat/completions")
    assert (asked["model"], asked["max_tokens"]) == ("gpt-4", 500)
    [message] = asked["messages"]
    assert message["role"] == "user"
    said, _, data = message["content"].partition(": ")
    assert said == "请为以下数据生成摘要"
    assert json.loads(data) == FINDINGS
    output = steps_of(execution)["report.summary.generate_summary"]["output"]
    assert (output["text"], output["usage"]["total_tokens"]) == (SUMMARY, 30)


def test_the_llm_example_beside_the_analysis_is_told_what_it_lacks(spec: Deployment) -> None:
    document = REPORT + example("agent.yaml") + example("llm.yaml").removeprefix("steps:\n")
    answer = spec.client.post("/api/v1/workflows", data=document.encode(), content_type="application/yaml")
    assert answer.status_code == 422
    [problem] = answer.json["errors"]
    assert problem["path"] == "steps[1].config.prompt"
    assert problem["message"].endswith("add 'analysis' to its depends_on")


def test_the_mcp_example_creates_a_session(spec: Deployment) -> None:
    head = "name: 对话\nvariables: {assistant_id: assistant-7}\n"
    execution = run(spec, created(spec, head + example("mcp.yaml")), {"user_id": "user-1"})
    assert execution["output"]["create_session"]["structured"] == {
        "session_id": "user-1/assistant-7",
        "turns": 0,
        "ends": None,
    }


# --- the API -----------------------------------------------------------------------------------------------------


def test_a_workflow_is_created_with_all_that_its_request_says(spec: Deployment) -> None:
    owner = str(uuid4())
    workflow = one(spec, "创建工作流", {"user-uuid": owner}, 201)
    assert (workflow["name"], workflow["description"]) == ("数据处理工作流", "自动化数据处理和分析流程")
    assert (workflow["tags"], workflow["owner_id"]) == (["数据处理", "自动化"], owner)
    assert (workflow["status"], workflow["version"]) == ("draft", 1)
    assert workflow["definition"] == {
        "version": "1.0",
        "variables": {"input_file": "", "output_dir": "/tmp/output"},
        "steps": [
            {
                "id": "step1",
                "name": "数据验证",
                "type": "script",
                "config": {"script": "validate_data.py", "timeout": "5m"},
            }
        ],
    }
    assert one(spec, "获取特定工作流", {"{id}": workflow["id"]}) == workflow


def test_workflows_are_listed_by_owner_status_and_tag(spec: Deployment) -> None:
    owner = str(uuid4())
    workflow_id = one(spec, "创建工作流", {"user-uuid": owner}, 201)["id"]
    another = created(spec, "name: another\nsteps: [{id: a, type: noop}]\n")["id"]
    spec.client.post(f"/api/v1/workflows/{workflow_id}/activate")
    answers = send(spec, "获取工作流列表", {"=uuid": f"={owner}"})
    everything, by_owner, by_status, by_tag = (
        [workflow["id"] for workflow in answer.json["items"]] for answer in answers
    )
    assert everything[:2] == [another, workflow_id]
    assert by_owner == [workflow_id]
    for found in (by_status, by_tag):
        assert workflow_id in found
        assert another not in found


def test_an_update_is_a_new_version(spec: Deployment) -> None:
    workflow_id = new_workflow(spec)
    steps = [{"id": "step2", "type": "script", "config": {"script": "validate.py"}}]
    workflow = one(spec, "更新工作流", {"{id}": workflow_id, "[...]": json.dumps(steps)})
    assert (workflow["name"], workflow["description"], workflow["version"]) == ("更新后的工作流", "更新描述", 2)
    assert workflow["definition"] == {"version": "1.1", "steps": steps}
    assert workflow["tags"] == ["数据处理", "自动化"]


def test_a_workflow_is_activated_paused_resumed_and_deleted(spec: Deployment) -> None:
    workflow_id = new_workflow(spec)
    *moved, deleted = send(spec, "工作流状态管理", {"{id}": workflow_id})
    assert [answer.json["status"] for answer in moved] == ["active", "paused", "active"]
    assert deleted.status_code == 204
    one(spec, "获取特定工作流", {"{id}": workflow_id}, 404)


def test_a_trigger_is_added_listed_changed_and_removed(spec: Deployment) -> None:
    workflow_id = new_workflow(spec)
    trigger = one(spec, "添加触发器", {"{workflow_id}": workflow_id}, 201)
    assert (trigger["type"], trigger["name"], trigger["is_enabled"]) == ("schedule", "每日数据处理", True)
    assert trigger["config"] == {"cron": "0 2 * * *", "timezone": "Asia/Shanghai"}
    assert (trigger["last_triggered"], trigger["trigger_count"]) == (None, 0)
    assert slots_of(spec, trigger) == ["02:00:00+08:00"]
    assert one(spec, "获取触发器列表", {"{workflow_id}": workflow_id})["items"] == [trigger]

    changed = one(spec, "更新触发器", {"{id}": trigger["id"]})
    # What the request does not name stays: the name, and the zone beside the cron expression.
    assert changed["config"] == {"cron": "0 3 * * *", "timezone": "Asia/Shanghai"}
    assert (changed["name"], changed["is_enabled"]) == ("每日数据处理", False)
    assert slots_of(spec, trigger) == ["03:00:00+08:00"]

    assert send(spec, "删除触发器", {"{id}": trigger["id"]})[0].status_code == 204
    assert one(spec, "获取触发器列表", {"{workflow_id}": workflow_id})["items"] == []
    one(spec, "删除触发器", {"{id}": trigger["id"]}, 404)


def test_an_execution_is_started_found_and_followed_to_its_end(spec: Deployment, data: Path) -> None:
    workflow_id = new_workflow(spec)
    execution = started(spec, workflow_id)
    assert execution["input"] == {"input_file": "data.csv", "parameters": {"batch_size": 1000}}
    assert execution["priority"] == 5
    answers = send(spec, "获取执行列表", {"=uuid": f"={workflow_id}"})
    newest, of_workflow, running = ([item["id"] for item in answer.json["items"]] for answer in answers)
    assert newest[0] == execution["id"]
    assert of_workflow == [execution["id"]]
    assert execution["id"] in running
    data.write_text("a\nb\n")
    spec.ended(execution["id"])
    shown = one(spec, "获取执行详情", {"{id}": execution["id"]})
    assert shown["status"] == "completed"
    assert shown["output"] == {"step1": {"result": {"rows": 2, "batch": 1000}, "exit_code": 0}}
    assert shown["start_time"] < shown["end_time"]
    assert (shown["trigger_id"], shown["error_message"]) == (None, None)
    assert execution["id"] not in send(spec, "获取执行列表", {"=uuid": f"={workflow_id}"})[2].text


def test_an_execution_is_paused_resumed_cancelled_and_retried(spec: Deployment, data: Path) -> None:
    execution_id = started(spec, new_workflow(spec))["id"]
    answers = send(spec, "执行控制", {"{id}": execution_id})
    assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
    assert [answer.json["status"] for answer in answers[:3]] == ["paused", "running", "cancelled"]
    assert answers[3].json["status"] in ("queued", "running")  # it takes its place again, at once if there is one
    data.write_text("a\nb\nc\n")
    assert ended(spec, execution_id)["output"]["step1"]["result"]["rows"] == 3


def test_the_log_of_an_execution_is_read_whole_and_by_step(spec: Deployment, data: Path) -> None:
    data.write_text("a\n")
    execution_id = one(spec, "手动执行工作流", {"{id}": new_workflow(spec)}, 202)["id"]
    ended(spec, execution_id)
    whole, of_step = (answer.json["items"] for answer in send(spec, "获取执行日志", {"{id}": execution_id}))
    assert whole == of_step
    assert (whole[0]["step_id"], whole[0]["message"]) == ("step1", "validating data.csv")


def test_a_step_that_failed_is_looked_at_and_retried(spec: Deployment, data: Path) -> None:
    data.write_text("a\n")
    script = spec.folder / "scripts" / "validate_data.py"
    away = script.rename(script.with_suffix(".away"))
    execution_id = one(spec, "手动执行工作流", {"{id}": new_workflow(spec)}, 202)["id"]
    [step] = ended(spec, execution_id, "failed")["step_executions"]
    os.replace(away, script)
    assert one(spec, "获取步骤执行详情", {"{id}": step["id"]}) == step
    assert (step["status"], step["error_kind"]) == ("failed", "config")
    assert "there is no script 'validate_data.py'" in step["error_message"]
    assert one(spec, "获取步骤输出", {"{id}": step["id"]}) == {"output": None}
    assert one(spec, "重试步骤", {"{id}": step["id"]})["id"] == step["id"]
    ended(spec, execution_id)
    assert one(spec, "获取步骤输出", {"{id}": step["id"]})["output"]["result"] == {"rows": 1, "batch": 1000}


def test_the_health_has_the_specified_shape(spec: Deployment) -> None:
    specified = json.loads(example("health.json"))
    answer = spec.client.get("/health", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert answer.json.keys() - {"script_isolation"} == specified.keys()  # which stands beside what is specified
    assert (answer.json["status"], answer.json["checks"]) == (specified["status"], specified["checks"])
    assert {name: type(number) for name, number in answer.json["stats"].items()} == dict.fromkeys(
        specified["stats"], int
    )


# --- the configuration -------------------------------------------------------------------------------------------


def test_the_configuration_of_the_service_is_read_as_it_is_written() -> None:
    settings = load_settings({}, SPEC / "config.yaml")
    assert settings.port == 8084
    assert settings.database.url == "postgres://user:password@localhost/noah_loop?sslmode=disable"
    scheduler, executor = settings.scheduler, settings.executor
    assert (scheduler.enabled, scheduler.workers, scheduler.max_concurrent) == (True, 10, 100)
    assert (scheduler.retry.max_attempts, scheduler.retry.initial_delay) == (3, 30)
    assert (executor.timeout, executor.max_memory, executor.log_retention) == (30 * 60, 1024**3, 7 * 86400)


def test_the_configuration_of_the_scheduler_is_read_as_it_is_written() -> None:
    scheduler = load_settings({}, SPEC / "scheduler.yaml").scheduler
    assert (scheduler.enabled, scheduler.workers, scheduler.max_concurrent) == (True, 10, 100)
    assert (scheduler.poll_interval, scheduler.priority_queue) == (5, True)
    retry = scheduler.retry
    assert (retry.max_attempts, retry.initial_delay, retry.max_delay, retry.backoff_factor) == (3, 30, 300, 2)
