"""Large outputs are kept in a folder or a bucket, and nobody but who looks at rows can tell."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from deployment import Deployment, deployed, wait_until
from moto.server import ThreadedMotoServer

from orchestrator.artifacts import MARK, Artifacts, Reference
from orchestrator.config import ArtifactSettings, Settings
from orchestrator.engine import retention
from orchestrator.engine.retention import Retention
from orchestrator.errors import ArtifactGone
from orchestrator.store import new_id
from orchestrator.store.session import id_at

SIZE = 300_000
TEXT = "x" * SIZE
MOST = 2_000_000


def step(id: str, type: str = "noop", needs: str = "", **config: Any) -> dict[str, Any]:
    return {"id": id, "type": type, "depends_on": needs.split(), "config": config}


def large(id: str = "big", size: int = SIZE, needs: str = "", **config: Any) -> dict[str, Any]:
    return step(id, "large", needs, size=size, **config)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("artifacts")

    def adjusted(settings: Settings) -> Settings:
        artifacts = replace(settings.artifacts, url=str(folder / "store"))
        return replace(settings, artifacts=artifacts, executor=replace(settings.executor, max_output=MOST))

    with deployed(folder, adjusted=adjusted) as deployment:
        deployment.start_worker("control,cpu,io")
        yield deployment


@pytest.fixture
def artifacts(own: Deployment) -> Artifacts:
    return Artifacts.of(own.settings.artifacts)


def row(own: Deployment, execution_id: object, path: str = "big") -> Any:
    """A step's output as its row has it."""
    ((output,),) = own.sql(
        "SELECT output FROM step_executions WHERE execution_id = %(id)s::uuid AND path = %(path)s",
        id=str(execution_id),
        path=path,
    )
    return output


def output(own: Deployment, execution_id: object, path: str = "big") -> Any:
    """The same as the API has it."""
    answer = own.client.get(f"/api/v1/executions/{execution_id}/steps/{path}/output")
    assert answer.status_code == 200, answer.text
    return answer.json


def done(own: Deployment, *steps: Any, **more: Any) -> Any:
    execution = own.run({"steps": list(steps), **more})
    assert execution["status"] == "completed", (execution["error_message"], execution["step_executions"])
    return execution


def files(own: Deployment, execution_id: object) -> list[Path]:
    return sorted(Path(own.settings.artifacts.url, str(execution_id)).glob("*"))


# --- what is kept where ---------------------------------------------------------------------------------------


def test_a_large_output_is_in_a_file_and_a_reference_in_its_row(own: Deployment):
    execution = done(own, large())
    reference = Reference.of(row(own, execution["id"]))
    assert reference is not None
    (file,) = files(own, execution["id"])
    assert (file.name, file.stat().st_size) == (reference.key, reference.size)
    assert json.loads(file.read_bytes())["text"] == TEXT
    shown = own.client.get(f"/api/v1/executions/{execution['id']}").json
    assert shown["step_executions"][0]["output"] == {MARK: reference.marker[MARK]}
    assert shown["output"] == {"big": reference.marker}


def test_a_small_output_is_in_its_row(own: Deployment):
    execution = done(own, large(size=200_000))
    assert row(own, execution["id"])["text"] == "x" * 200_000
    assert files(own, execution["id"]) == []


def test_an_output_is_read_whole_wherever_it_is(own: Deployment):
    execution = done(own, large(), large("small", 10))
    assert output(own, execution["id"]) == {"text": TEXT, "rows": [{"n": 0}]}
    assert output(own, execution["id"], "small") == {"text": "x" * 10, "rows": [{"n": 0}]}
    step_id = execution["step_executions"][0]["id"]
    assert own.client.get(f"/api/v1/step-executions/{step_id}/output").json["output"]["text"] == TEXT
    answer = own.client.get(f"/api/v1/executions/{execution['id']}/steps/nothing/output")
    assert (answer.status_code, answer.json["detail"]) == (
        404,
        f"there is no step nothing in execution {execution['id']}",
    )


def test_an_output_over_the_limit_fails_its_step_with_what_to_do(own: Deployment):
    execution = own.run({"steps": [large(size=MOST)]})
    (failed,) = execution["step_executions"]
    size = len(json.dumps({"text": "x" * MOST, "rows": [{"n": 0}]}, separators=(",", ":")))
    assert (failed["status"], failed["error_kind"], failed["attempt"]) == ("failed", "output", 1)
    assert failed["error_message"] == (
        f"the output of step big has {size:,} bytes as JSON; the limit (executor.max_output) is 2,000,000: let the "
        "step return less, or write the data elsewhere and return where it is, or raise the limit"
    )
    assert files(own, execution["id"]) == []


def test_the_output_of_a_step_that_failed_is_kept_too(own: Deployment):
    source = "import json, os, sys; json.dump('y' * 300000, open(os.environ['ORCHESTRATOR_RESULT'], 'w')); sys.exit(3)"
    execution = own.run({"steps": [step("script", "script", source=source)]})
    assert Reference.of(row(own, execution["id"], "script")) is not None
    assert output(own, execution["id"], "script") == {"result": "y" * 300_000, "exit_code": 3}


def test_secrets_are_masked_in_files_as_they_are_in_rows(own: Deployment):
    secret = "a-secret-that-nobody-is-to-read"
    assert own.client.post("/api/v1/secrets", json={"name": "told", "value": secret}).status_code == 201
    execution = done(own, step("big", "set", values={"text": "{{ secrets.told }}", "more": TEXT}))
    (file,) = files(own, execution["id"])
    assert secret.encode() not in file.read_bytes()
    assert output(own, execution["id"])["text"] == "***"


# --- templates ------------------------------------------------------------------------------------------------


def test_templates_see_a_large_output_as_any_other(own: Deployment):
    execution = done(
        own,
        {**large(until=3), "output_mapping": {"rows": "{{ output.rows | length }}"}},
        step("part", "set", "big", values={"n": "{{ steps.big.output.rows[2].n }}", "rows": "{{ variables.rows }}"}),
        step("length", "set", "part", values={"is": "{{ steps.big.output.text | length }}"}),
        step("status", "set", "length", values={"is": "{{ steps.big.status }}"}),
        {**step("when", "set", "status", values={"was": True}), "when": "steps.big.output.rows[1].n == 1"},
        {**step("not", "set", "status", values={"was": True}), "when": "steps.big.output.rows[1].n == 2"},
        step("chosen", "condition", "when", expression="steps.big.output.rows | length == 3"),
        variables={"rows": 0},
        outputs={"n": "{{ steps.big.output.rows[1].n }}", "length": "{{ steps.length.output.is }}"},
    )
    assert row(own, execution["id"], "part") == {"n": 2, "rows": 3}
    assert row(own, execution["id"], "status") == {"is": "completed"}
    assert execution["output"] == {"n": 1, "length": SIZE}
    statuses = own.statuses(str(execution["id"]))
    assert (statuses["when"], statuses["not"]) == ("completed", "skipped")
    assert row(own, execution["id"], "chosen")["result"] is True


def test_a_file_that_no_template_touches_is_not_read(own: Deployment):
    gate = own.folder / f"gate-{new_id()}"
    definition = {
        "steps": [
            large(),
            step("gate", "gate", "big", file=str(gate)),
            step("status", "set", "gate", values={"is": "{{ steps.big.status }}"}),
            {**step("needs", "set", "status", values={"is": "{{ steps.big.output.text | length }}"})},
        ]
    }
    execution_id = own.execute(own.create(definition))
    for file in _until_there(own, execution_id):
        file.unlink()
    gate.touch()
    execution = own.ended(execution_id)
    statuses = own.statuses(execution_id)
    assert (statuses["status"], statuses["needs"]) == ("completed", "failed")
    failed = execution["step_executions"][-1]
    assert (failed["error_kind"], failed["attempt"]) == ("artifact", 1)
    assert "is not in" in failed["error_message"]
    answer = own.client.get(f"/api/v1/executions/{execution_id}/steps/big/output")
    assert answer.status_code == 410


def _until_there(own: Deployment, execution_id: str) -> list[Path]:
    wait_until(lambda: own.statuses(execution_id)["big"] == "completed", what="the large output")
    return files(own, execution_id)


def test_a_file_that_was_changed_is_not_believed(own: Deployment, artifacts: Artifacts):
    execution_id = new_id()
    reference = Reference.of(artifacts.put(execution_id, b'"as it was"'))
    assert reference is not None
    (file,) = files(own, execution_id)
    file.write_bytes(b'"as it is "')
    with pytest.raises(ArtifactGone, match="is damaged"):
        artifacts.load(execution_id, reference)


def test_what_a_process_has_read_is_found_by_whom_it_belongs_to_only(artifacts: Artifacts):
    execution_id = new_id()
    reference = Reference.of(artifacts.put(execution_id, b'"mine"'))
    assert reference is not None
    assert artifacts.load(execution_id, reference) == "mine"
    for id, made_up in [(new_id(), reference), (execution_id, replace(reference, size=1))]:
        with pytest.raises(ArtifactGone):
            artifacts.load(id, made_up)


def test_loops_go_over_what_is_in_files_and_collect_what_comes_of_it(own: Deployment):
    execution = done(
        own,
        large(until=4),
        step(
            "each",
            "loop",
            "big",
            items="{{ steps.big.output.rows }}",
            steps=[large("made", until=2), step("last", "noop", "made", value="{{ steps.made.output.rows[1].n }}")],
        ),
        step("heavy", "loop", "each", items=[1, 2], steps=[large("more")]),
        step("seen", "set", "heavy", values={"is": "{{ steps.heavy.output.results[1].text | length }}"}),
    )
    assert row(own, execution["id"], "each")["results"] == [{"result": 1}] * 4
    assert Reference.of(row(own, execution["id"], "heavy")) is not None
    assert [one["text"] for one in output(own, execution["id"], "heavy")["results"]] == [TEXT, TEXT]
    assert row(own, execution["id"], "seen") == {"is": SIZE}


def test_a_loop_that_collects_too_much_says_so_before_it_reads_any(own: Deployment):
    loop = step("heavy", "loop", items=list(range(8)), steps=[large("made")])
    execution = own.run({"steps": [loop]})
    message = execution["step_executions"][0]["error_message"]
    assert "it would hold 8 outputs of" in message
    assert "collect: false" in message
    loop["config"]["collect"] = False
    done(own, loop)


def test_a_while_sees_the_large_output_of_its_last_round(own: Deployment):
    loop = {
        "while": "loop.index < 3 and (loop.index == 0 or loop.last.rows | length == 2)",
        "collect": False,
        "steps": [
            step("before", "noop", value="{{ loop.last.text | length if loop.index else 0 }}"),
            large("made", until=2, needs="before"),
        ],
    }
    execution = done(own, step("w", "loop", **loop))
    assert row(own, execution["id"], "w")["count"] == 3
    assert row(own, execution["id"], "w[2].before") == {"result": SIZE}


def test_parallel_branches_may_return_large_outputs(own: Deployment):
    branches = {"left": [large("made")], "right": [large("small", 10)]}
    execution = done(own, step("both", "parallel", branches=branches))
    found = output(own, execution["id"], "both")
    assert (len(found["left"]["text"]), len(found["right"]["text"])) == (SIZE, 10)


def test_a_body_that_only_computes_may_make_large_outputs(own: Deployment):
    execution = done(
        own,
        step("sum", "loop", items=[1, 2], steps=[
            step("made", "set", values={"text": TEXT, "n": "{{ loop.item }}"}),
            step("seen", "set", "made", values={"n": "{{ steps.made.output.n }}"}),
        ]),
    )  # fmt: skip
    assert row(own, execution["id"], "sum")["results"] == [{"n": 1}, {"n": 2}]
    assert Reference.of(row(own, execution["id"], "sum[0].made")) is not None


def test_what_another_workflow_returns_may_be_large_and_outlives_it(own: Deployment):
    child = own.create({"steps": [large()]})
    execution = done(
        own,
        step("child", "workflow", workflow=child),
        step("seen", "set", "child", values={"is": "{{ steps.child.output.output.big.text | length }}"}),
    )
    assert row(own, execution["id"], "seen") == {"is": SIZE}
    child_id = output(own, execution["id"], "child")["execution_id"]
    assert own.client.delete(f"/api/v1/executions/{child_id}").status_code == 204
    assert output(own, execution["id"], "child")["output"]["big"]["text"] == TEXT


def test_what_an_execution_returns_that_only_computes_may_be_large(own: Deployment):
    child = own.create({"steps": [step("big", "set", values={"text": TEXT})]})
    parent = own.create({"steps": [step("child", "workflow", workflow=child)]})
    for _ in range(2):  # the first of them is not yet performed by the step that starts it
        execution = own.ended(own.execute(parent))
        found = output(own, execution["id"], "child")
        assert found["output"] == {"big": {"text": TEXT}}
        assert Reference.of(row(own, found["execution_id"])) is not None


def test_a_retried_step_goes_on_with_large_outputs_and_writes_its_own(own: Deployment):
    gate = own.folder / f"gate-{new_id()}"
    flaky = "import os, sys; sys.exit(not os.path.exists({{ input.gate | tojson }}))"
    definition = {
        "steps": [
            large(),
            step("flaky", "script", "big", source=flaky.replace("{{ input.gate | tojson }}", repr(str(gate)))),
            step("seen", "set", "flaky", values={"is": "{{ steps.big.output.text | length }}"}),
        ]
    }
    execution = own.run(definition)
    assert execution["status"] == "failed"
    gate.touch()
    assert own.client.post(f"/api/v1/executions/{execution['id']}/retry").status_code == 200
    assert own.ended(str(execution["id"]))["status"] == "completed"
    assert row(own, execution["id"], "seen") == {"is": SIZE}


def test_an_execution_that_is_done_again_keeps_large_results_of_its_own(own: Deployment, artifacts: Artifacts):
    seen = step("seen", "set", "big", values={"is": "{{ steps.big.output.text | length }}"})
    original = done(own, large(), seen)["id"]
    answer = own.client.post(f"/api/v1/executions/{original}/rerun", json={"from_step": "seen"})
    again = own.ended(answer.json["id"])
    assert own.client.delete(f"/api/v1/executions/{original}").status_code == 204
    artifacts.remove(str(original))
    assert row(own, again["id"], "seen") == {"is": SIZE}
    assert output(own, again["id"])["text"] == TEXT


def test_a_cached_result_is_taken_into_the_execution_that_takes_it(own: Deployment, artifacts: Artifacts):
    workflow_id = own.create({"steps": [{**large(), "cache": {"key": "same", "ttl": "1h"}}]})
    first, second = (own.ended(own.execute(workflow_id))["id"] for _ in range(2))
    artifacts.remove(str(first))
    assert output(own, second)["text"] == TEXT


def test_what_looks_like_a_reference_opens_no_file_of_another_execution(own: Deployment):
    other = done(own, large())["id"]
    marker = row(own, other)
    execution = own.run({"steps": [step("big", "noop", value=marker), step("seen", "set", "big", values={
        "is": "{{ steps.big.output.text }}"})]})  # fmt: skip
    assert own.statuses(str(execution["id"]))["seen"] == "failed"
    answer = own.client.get(f"/api/v1/executions/{execution['id']}/steps/big/output")
    assert answer.status_code == 410


@pytest.mark.parametrize(
    "value",
    [
        {MARK: 1},
        {MARK: {"key": "../other/file", "size": 1, "sha256": "a", "media_type": "text/plain"}},
        {MARK: {"key": new_id(), "size": 1, "sha256": "a"}},
        {MARK: {"key": new_id(), "size": 1, "sha256": "a", "media_type": "text/plain"}, "more": 1},
    ],
)
def test_other_values_under_that_name_are_values(value: Any):
    assert Reference.of(value) is None


# --- what goes when -------------------------------------------------------------------------------------------


def test_artifacts_go_after_their_execution_and_no_others_do(
    own: Deployment, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
):
    kept, gone = (str(done(own, large())["id"]) for _ in range(2))
    orphan, coming = id_at((time.time() - 7200) * 1000)[:-12] + os.urandom(6).hex(), new_id()
    for execution_id in (orphan, coming):  # nobody has committed a row for these
        artifacts.put(execution_id, b"1")
    assert own.client.delete(f"/api/v1/executions/{gone}").status_code == 204
    sweeper = Retention(own.store, own.settings, holder=new_id())
    sweeper.sweep_artifacts()
    there = set(artifacts.executions())
    assert orphan not in there
    assert {kept, gone, coming} <= there  # what is so new may belong to one that is just being made
    monkeypatch.setattr(retention, "_GRACE", 0.0)
    sweeper.sweep_artifacts()
    assert {kept, gone, coming} & set(artifacts.executions()) == {kept}
    assert 'orchestrator_removed_total{kind="artifacts of executions"}' in own.client.get("/metrics").text


def test_a_database_that_knows_none_of_the_executions_removes_nothing(own: Deployment, tmp_path: Path):
    elsewhere = replace(own.settings.artifacts, url=str(tmp_path))
    artifacts, old = Artifacts.of(elsewhere), id_at(1000)
    artifacts.put(old, b"1")
    Retention(own.store, replace(own.settings, artifacts=elsewhere), holder=new_id()).sweep_artifacts()
    assert artifacts.executions() == [old]


def test_what_no_row_refers_to_goes_a_while_after_the_end_of_its_execution(
    own: Deployment, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
):
    """As a worker leaves it that dies before it records its result."""
    execution_id = str(done(own, large())["id"])
    artifacts.put(execution_id, b"1")
    sweeper = Retention(own.store, own.settings, holder=new_id())
    sweeper.sweep_artifacts()
    assert len(files(own, execution_id)) == 2
    monkeypatch.setattr(retention, "_GRACE", 0.0)
    sweeper.sweep_artifacts()
    assert len(files(own, execution_id)) == 1
    assert output(own, execution_id)["text"] == TEXT


def test_a_store_that_is_away_fails_the_attempt_and_another_may_succeed(own: Deployment):
    """The folder's place is taken by a file until the second attempt."""
    store = Path(own.settings.artifacts.url)
    aside = store.with_name("aside")
    gate = own.folder / f"gate-{new_id()}"
    definition = {
        "steps": [
            step("gate", "gate", file=str(gate)),
            {**large(needs="gate"), "retry_policy": {"max_attempts": 20, "initial_delay": "200ms"}},
        ]
    }
    execution_id = own.execute(own.create(definition))
    store.rename(aside)
    try:
        store.write_text("not a folder")
        gate.touch()
        _until(own, execution_id, "error_kind = 'artifact'")
    finally:
        store.unlink()
        aside.rename(store)
    assert own.ended(execution_id)["status"] == "completed"
    assert output(own, execution_id)["text"] == TEXT


def _until(own: Deployment, execution_id: str, condition: str) -> None:
    sql = f"SELECT FROM step_executions WHERE execution_id = %(id)s::uuid AND path = 'big' AND {condition}"
    wait_until(lambda: own.sql(sql, id=execution_id), what=condition)


# --- in a bucket ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket() -> Iterator[ArtifactSettings]:
    """One on a server that speaks S3."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address, credentials = f"http://{host}:{port}", {"key": "an-access-key", "secret": "a-secret-key"}
    boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1",
        aws_access_key_id=credentials["key"], aws_secret_access_key=credentials["secret"],
    ).create_bucket(Bucket="outputs")  # fmt: skip
    yield ArtifactSettings(url="s3://outputs/of/steps", options={"endpoint_url": address}, credentials=credentials)
    server.stop()


def test_a_bucket_is_as_good_as_a_folder(bucket: ArtifactSettings):
    artifacts, others = Artifacts(bucket), Artifacts(bucket)
    assert others.executions() == []
    first, second, nothing = new_id(), new_id(), new_id()
    reference = Reference.of(artifacts.put(first, b'{"a": [1, 2]}'))
    assert reference is not None
    assert others.load(first, reference) == {"a": [1, 2]}
    assert b"".join(others.chunks(first, reference)) == b'{"a": [1, 2]}'
    artifacts.copy(first, second)
    artifacts.copy(nothing, new_id())
    assert sorted(others.executions()) == [first, second]
    other = Reference.of(artifacts.put(second, b"1"))
    assert other is not None
    artifacts.remove_others(second, {reference.key})
    with pytest.raises(ArtifactGone):
        others.load(second, other)
    artifacts.remove(first)
    artifacts.remove(nothing)
    assert others.executions() == [second]
    with pytest.raises(ArtifactGone):
        Artifacts(bucket).load(first, reference)
    assert Artifacts(bucket).load(second, reference) == {"a": [1, 2]}


def test_workers_keep_large_outputs_in_a_bucket(own: Deployment, bucket: ArtifactSettings):
    others = Deployment(own.folder, own.servers, replace(own.settings, artifacts=bucket))
    others.start_worker("bucket", concurrency=1)
    try:
        seen = step("seen", "noop", "big", value="{{ steps.big.output.text | length }}")
        execution = done(others, {**large(), "queue": "bucket"}, {**seen, "queue": "bucket"})
        assert Reference.of(row(others, execution["id"])) is not None
        assert row(others, execution["id"], "seen") == {"result": SIZE}
        assert output(others, execution["id"])["text"] == TEXT
    finally:
        others.stop()


# --- without a store ------------------------------------------------------------------------------------------


def test_without_a_store_outputs_are_in_rows_up_to_what_these_may_have(deployment: Deployment):
    execution = deployment.run({"steps": [large()]})
    assert execution["step_executions"][0]["output"]["text"] == TEXT
    execution = deployment.run({"steps": [large(size=1024**2)]})
    assert "the limit (executor.max_payload) is 1,048,576" in execution["step_executions"][0]["error_message"]
