"""Lists: their filters, their orders, and pages that cost the same wherever they are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from deployment import Deployment, deployed, watched
from test_execution import step, workflow

from api.resources.paging import cursor_of
from orchestrator.lifecycle import EXECUTION_LIVE
from orchestrator.store import executions

WORKFLOWS = "/api/v1/workflows"
MANY = 8_000


def page(deployment: Deployment, path: str, *, key: str | None = None, **query: Any) -> Any:
    """What the owner of `key` is shown, or else the administrator."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    answer = deployment.client.get(path, query_string=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json


def walked(deployment: Deployment, path: str, **query: Any) -> Iterator[dict[str, Any]]:
    cursor = None
    while True:
        got = page(deployment, path, **query, **({"cursor": cursor} if cursor else {}))
        yield from got["items"]
        cursor = got["next"]
        if cursor is None:
            return


def made(servers: Deployment, name: str, **more: Any) -> str:
    body = {"name": name, "definition": workflow(step("a")), **more}
    answer = servers.client.post(WORKFLOWS, json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json["id"])


# --- search ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("report", "ab"),
        ("REPO", "ab"),
        ("daily report", "a"),
        ("report daily", "a"),
        ("eport", ""),
        ("process", "c"),
        ("数据", "b"),
        ("处理", "b"),
        ("数据 report", "b"),
        ("据", "b"),
        ("自动", "c"),
        ("数理", ""),
    ],
)
def test_workflows_are_found_by_words_of_their_names_descriptions_and_tags(
    servers: Deployment, asked: str, found: str
) -> None:
    owner = str(uuid4())
    ids = {
        made(servers, "Daily report", owner_id=owner): "a",
        made(servers, "数据处理工作流", description="the weekly reports", owner_id=owner): "b",
        made(servers, "clean", description="runs /data/process.py", tags=["自动化"], owner_id=owner): "c",
    }
    items = page(servers, WORKFLOWS, q=asked, owner_id=owner)["items"]
    assert sorted(ids[item["id"]] for item in items) == list(found)


def test_what_is_renamed_is_found_by_its_new_name_and_keeps_its_other_words(servers: Deployment) -> None:
    old, new, tag = (f"w{uuid4().hex}" for _ in range(3))
    id = made(servers, old, tags=[tag])
    servers.client.put(f"{WORKFLOWS}/{id}", json={"name": new})
    for asked, ids in ((old, []), (new, [id]), (tag, [id])):
        assert [item["id"] for item in page(servers, WORKFLOWS, q=asked)["items"]] == ids


@pytest.mark.parametrize("asked", ["", "  ", "---", "\0", "x" * 501])
def test_a_question_without_a_word_is_refused(servers: Deployment, asked: str) -> None:
    answer = servers.client.get(WORKFLOWS, query_string={"q": asked})
    assert answer.status_code == 422
    assert [error["path"] for error in answer.json["errors"]] == ["q"]


# --- orders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sort", ["name", "-name", "+name", "created_at", "-created_at", "updated_at", "-updated_at"])
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_every_order_holds_each_once(servers: Deployment, sort: str, limit: int) -> None:
    owner = str(uuid4())
    ids = [made(servers, name, owner_id=owner) for name in ("b", "a", "b", "c", "B", "数")]
    servers.client.put(f"{WORKFLOWS}/{ids[2]}", json={"description": "changed last"})
    items = list(walked(servers, WORKFLOWS, owner_id=owner, sort=sort, limit=limit))
    assert sorted(item["id"] for item in items) == sorted(ids)
    key, way = sort.lstrip("+-"), "DESC" if sort.startswith("-") else "ASC"
    by_database = servers.sql(
        f"SELECT id::text FROM workflows WHERE owner_id = %(owner)s::uuid ORDER BY {key} {way}, id {way}", owner=owner
    )
    assert [item["id"] for item in items] == [id for (id,) in by_database]


def test_what_is_added_meanwhile_shifts_no_page(servers: Deployment) -> None:
    owner = str(uuid4())
    ids = [made(servers, f"{n}", owner_id=owner) for n in range(6)]
    first = page(servers, WORKFLOWS, owner_id=owner, limit=3)
    made(servers, "meanwhile", owner_id=owner)
    second = page(servers, WORKFLOWS, owner_id=owner, limit=3, cursor=first["next"])
    assert [item["id"] for item in first["items"] + second["items"]] == ids[::-1]
    assert second["next"] is None


def test_a_cursor_belongs_to_its_order(servers: Deployment) -> None:
    owner = str(uuid4())
    for name in "abc":
        made(servers, name, owner_id=owner)
    cursor = page(servers, WORKFLOWS, owner_id=owner, limit=1, sort="name")["next"]
    answer = servers.client.get(WORKFLOWS, query_string={"cursor": cursor, "sort": "-name"})
    assert answer.status_code == 422
    assert "sorted by name" in answer.json["errors"][0]["message"]


LISTS = ["workflows", "executions", "step-templates", "workflows/{w}/versions", "workflows/{w}/triggers",
         "triggers/{t}/fires", "executions/{e}/logs"]  # fmt: skip


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize(
    "cursor", ["x", "!", "W10", "bnVsbA", "WyItY3JlYXRlZF9hdCIsMV0", "WyItY3JlYXRlZF9hdCIsbnVsbF0", "0" * 2001, "数"]
)
def test_no_list_takes_a_cursor_that_is_none(servers: Deployment, path: str, cursor: str) -> None:
    daily = {"type": "schedule", "config": {"cron": "0 2 * * *"}}
    w = servers.create({**workflow(step("a")), "triggers": [daily]})
    t, e = page(servers, f"{WORKFLOWS}/{w}/triggers")["items"][0]["id"], servers.execute(w)
    answer = servers.client.get(f"/api/v1/{path.format(w=w, t=t, e=e)}", query_string={"cursor": cursor})
    assert answer.status_code == 422
    assert [error["path"] for error in answer.json["errors"]] == ["cursor"]
    refused = servers.client.get(f"/api/v1/{path.format(w=w, t=t, e=e)}", query_string={"sort": "colour"})
    assert [error["path"] for error in refused.json["errors"]] == ["sort"]


def test_executions_are_listed_by_when_they_were_made(servers: Deployment) -> None:
    workflow_id = servers.create(workflow(step("a")))
    ids = [servers.execute(workflow_id) for _ in range(3)]
    moments = [servers.execution(id)["created_at"] for id in ids]

    def listed(**query: datetime) -> list[str]:
        asked = {name: moment.isoformat() for name, moment in query.items()}
        return [item["id"] for item in walked(servers, "/api/v1/executions", workflow_id=workflow_id, **asked)]

    assert listed(created_after=moments[1]) == [ids[2], ids[1]]
    assert listed(created_before=moments[1]) == [ids[0]]
    assert listed(created_after=moments[0], created_before=moments[2]) == [ids[1], ids[0]]
    assert listed(created_after=datetime.max.replace(tzinfo=UTC) - timedelta(days=1)) == []
    assert listed(created_before=datetime.min.replace(tzinfo=UTC) + timedelta(days=1)) == []


@pytest.mark.parametrize(
    ("moment", "status"),
    [
        ("2000-01-01T00:00:00+16:00", 200),  # which PostgreSQL would not read
        ("2000-01-01T00:00:00-23:59", 200),
        ("0001-01-01T00:00:00+01:00", 422),
        ("9999-12-31T23:59:59-01:00", 422),
        ("2000-01-01T00:00:00", 422),
    ],
)
def test_a_moment_is_one_in_any_zone(servers: Deployment, moment: str, status: int) -> None:
    listed = servers.client.get("/api/v1/executions", query_string={"created_after": moment})
    body = {"action": "cancel", "filter": {"created_before": moment, "ids": [str(uuid4())]}}
    many = servers.client.post("/api/v1/executions/bulk", json=body)
    assert (listed.status_code, many.status_code) == (status, status), (listed.text, many.text)


# --- cost -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, dict[str, str]]]:
    """Thousands of rows in every list, and the ids that their addresses need."""
    with deployed(tmp_path_factory.mktemp("full")) as full:
        daily = {"type": "schedule", "config": {"cron": "0 2 * * *"}}
        w = full.create({**workflow(step("a")), "triggers": [daily]})
        t, e = page(full, f"{WORKFLOWS}/{w}/triggers")["items"][0]["id"], full.execute(w)
        row = full.sql("SELECT id::text FROM step_executions WHERE execution_id = %(e)s::uuid", e=e)
        o = full.create(workflow(step("a")))
        rows = f"generate_series(1, {MANY}) AS n"
        # Ids as the service makes them: one a millisecond, until now.
        id = f"""overlay(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - {MANY} + n), 12, '0') PLACING '-'
                 FROM 9 FOR 0) || '-7000-8000-' || lpad(to_hex(n), 12, '0')"""
        for statement in (
            f"""INSERT INTO workflows (id, name, version, terms, updated_at)
                SELECT ({id})::uuid, md5(n::text), 1, array_to_tsvector(ARRAY[md5(n::text), 'all']),
                       now() - (n * 7919 %% {MANY}) * interval '1 second' FROM {rows}""",
            f"""INSERT INTO workflow_versions (workflow_id, version, definition)
                SELECT %(w)s::uuid, n + 1, '{{}}' FROM {rows}""",
            f"""INSERT INTO step_templates (id, name, step) SELECT ({id})::uuid, md5(n::text), '{{}}' FROM {rows}""",
            f"""INSERT INTO triggers (id, workflow_id, type, name, config)
                SELECT ({id})::uuid, %(w)s::uuid, 'manual', n::text, '{{}}' FROM {rows}""",
            f"""INSERT INTO trigger_fires (id, trigger_id, input)
                SELECT ({id})::uuid, %(t)s::uuid, '{{}}' FROM {rows}""",
            f"""INSERT INTO executions (id, workflow_id, version, status, input, finished_at)
                SELECT ({id})::uuid, CASE n %% 2 WHEN 0 THEN %(w)s ELSE %(o)s END::uuid, 1,
                       CASE WHEN n %% 400 = 0 THEN 'failed' ELSE 'completed' END, '{{}}', now() FROM {rows}""",
            f"""INSERT INTO step_logs (id, execution_id, step_execution_id, step_id, attempt, level, message, at)
                SELECT ({id})::uuid, CASE WHEN n BETWEEN {MANY} / 4 AND {MANY} * 3 / 4 THEN %(e)s ELSE %(o)s END::uuid,
                       %(s)s::uuid, 'a', 1, 'info', 'x', now() FROM {rows}""",
            f"""INSERT INTO audit_log (id, actor_kind, action, object_kind, object_id, status, request_id)
                SELECT ({id})::uuid, 'key', 'workflow.execute', 'workflow', %(w)s, 202, n::text FROM {rows}""",
            "ANALYZE",
        ):  # fmt: skip
            full.sql(statement, w=w, o=o, t=t, e=e, s=row[0][0])
        yield full, {"w": w, "t": t, "e": e}


@pytest.mark.parametrize(
    ("path", "query"),
    [
        *(("workflows", {"sort": sort}) for sort in ("created_at", "-created_at", "name", "-name")),
        *(("workflows", {"sort": sort}) for sort in ("updated_at", "-updated_at")),
        ("workflows", {"q": "all"}),
        *(("executions", {"sort": sort}) for sort in ("created_at", "-created_at")),
        ("executions", {"status": "completed"}),
        ("executions", {"workflow_id": "{w}"}),
        *(("step-templates", {"sort": sort}) for sort in ("created_at", "-created_at", "name", "-name")),
        *(("workflows/{w}/versions", {"sort": sort}) for sort in ("version", "-version")),
        *(("workflows/{w}/triggers", {"sort": sort}) for sort in ("created_at", "-created_at")),
        *(("triggers/{t}/fires", {"sort": sort}) for sort in ("created_at", "-created_at")),
        *(("executions/{e}/logs", {"sort": sort}) for sort in ("at", "-at")),
        *(("executions/{e}/logs", {"step_id": "a", "sort": sort}) for sort in ("at", "-at")),
    ],
)  # fmt: skip
def test_the_last_page_costs_what_the_first_does(
    full: tuple[Deployment, dict[str, str]], path: str, query: dict[str, str]
) -> None:
    deployment, ids = full
    address = f"/api/v1/{path.format(**ids)}"
    query = {name: value.format(**ids) for name, value in query.items()}
    # Fewer than the planner takes to be of one status, of which it knows nothing but the number of all.
    first, cursor = buffers(deployment, address, **query, limit="5"), None
    for _ in range(MANY * 4 // 10 // 200):
        cursor = page(deployment, address, **query, limit=200, **({"cursor": cursor} if cursor else {}))["next"]
        assert cursor is not None
    last = buffers(deployment, address, **query, limit="5", cursor=cursor)
    assert last <= first + 15, f"{first} pages of the database are read for the first, {last} for the last"
    assert first < 30  # two for each of the rows, which stand anywhere, and some for the index


def test_a_rare_status_and_an_old_time_are_found_by_an_index(full: tuple[Deployment, dict[str, str]]) -> None:
    deployment, _ = full
    assert buffers(deployment, "/api/v1/executions", status="failed", sort="created_at", limit="50") < 40
    assert buffers(deployment, "/api/v1/executions", created_before="2020-01-01T00:00:00Z", limit="50") < 10


@pytest.fixture(scope="module")
def hidden(full: tuple[Deployment, dict[str, str]]) -> tuple[Deployment, str, list[str]]:
    """Two workflows in a project of their own; the key of one who sees only that; and the ids of the few executions of
    one of them, the newest first, which are older than all others."""
    deployment, _ = full
    assert deployment.client.post("/api/v1/projects", json={"name": "small"}).status_code == 201
    made(deployment, "never ran", project="small")
    w = made(deployment, "rarely", project="small")
    rows = deployment.sql(
        """INSERT INTO executions (id, workflow_id, version, status, input, finished_at, created_at)
           SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, %(w)s::uuid, 1,
                  CASE WHEN n %% 3 = 0 THEN 'failed' ELSE 'completed' END, '{}', '1970-01-02', '1970-01-01'
           FROM generate_series(1, 9) AS n RETURNING id::text""",
        w=w,
    )
    deployment.sql("VACUUM ANALYZE executions")
    grants = [{"project": "small", "role": "viewer"}]
    key = deployment.client.post("/api/v1/keys", json={"name": "small", "grants": grants}).json["key"]
    return deployment, key, [id for (id,) in rows][::-1]


@pytest.mark.parametrize("sort", ["created_at", "-created_at"])
@pytest.mark.parametrize("status", [None, "failed"])
def test_who_sees_few_executions_gets_them_in_pages_without_a_look_at_the_others(
    hidden: tuple[Deployment, str, list[str]], sort: str, status: str | None
) -> None:
    deployment, key, ids = hidden
    expected = [id for id in ids if status is None or int(id[-1]) % 3 == 0]
    query = {"sort": sort, **({"status": status} if status else {})}
    found = [row["id"] for row in walked(deployment, "/api/v1/executions", key=key, limit=2, **query)]
    assert found == (expected if sort.startswith("-") else expected[::-1])
    assert buffers(deployment, "/api/v1/executions", key=key, **query, limit="5") < 100
    late = {"created_after": "1970-01-01T00:00:01Z"}
    assert page(deployment, "/api/v1/executions", key=key, **query, **late)["items"] == []
    assert buffers(deployment, "/api/v1/executions", key=key, **query, **late, limit="5") < 100


def test_whether_a_workflow_ever_failed_is_found_by_an_index(full: tuple[Deployment, dict[str, str]]) -> None:
    deployment, ids = full
    assert buffers(deployment, "/api/v1/executions", workflow_id=ids["w"], status="cancelled") < 10


@pytest.mark.parametrize("step_id", [None, "a"])
@pytest.mark.parametrize(("sort", "last"), [("at", "max"), ("-at", "min")])
def test_the_end_of_a_log_is_found_without_a_look_at_the_lines_of_others(
    full: tuple[Deployment, dict[str, str]], sort: str, last: str, step_id: str | None
) -> None:
    deployment, ids = full
    ((seq,),) = deployment.sql(f"SELECT {last}(seq) FROM step_logs WHERE execution_id = %(e)s::uuid", e=ids["e"])
    path, query = f"/api/v1/executions/{ids['e']}/logs", {"sort": sort, "cursor": cursor_of(sort, (seq,))}
    query |= {"step_id": step_id} if step_id else {}
    assert page(deployment, path, **query)["items"] == []
    assert buffers(deployment, path, **query) < 20


@pytest.mark.parametrize("sort", ["at", "-at"])
def test_that_a_step_wrote_no_line_is_found_by_an_index(full: tuple[Deployment, dict[str, str]], sort: str) -> None:
    deployment, ids = full
    path = f"/api/v1/executions/{ids['e']}/logs"
    assert page(deployment, path, step_id="b", sort=sort)["items"] == []
    assert buffers(deployment, path, step_id="b", sort=sort) < 20


@pytest.mark.parametrize(
    "query", [{"action": "key.revoke"}, {"object_kind": "secret"}, {"request_id": "x"}, {"denied": "true"}]
)
def test_rare_entries_of_the_audit_log_are_found_by_an_index(
    full: tuple[Deployment, dict[str, str]], query: dict[str, str]
) -> None:
    deployment, _ = full
    assert page(deployment, "/api/v1/audit", **query)["items"] == []
    assert buffers(deployment, "/api/v1/audit", **query) < 20


def test_a_key_is_looked_for_among_keys_with_a_plan_for_any_key(full: tuple[Deployment, dict[str, str]]):
    deployment, ids = full
    planning = "enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off"
    with deployment.store.transaction() as connection:
        connection.exec_driver_sql(f"SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL {planning}")
        connection.exec_driver_sql(f"PREPARE look (uuid, text) AS SELECT {executions.has_key('$1', '$2')} AS found")
        asked = f"EXECUTE look ('{ids['w']}', 'a key')"
        assert connection.exec_driver_sql(asked).scalar_one() is False
        explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {asked}").scalar_one()
        connection.exec_driver_sql("DEALLOCATE look")
    plan = explained[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 10
    assert "uq_executions_idempotency" in str(plan)


@pytest.mark.parametrize("sort", ["created_at", "-created_at"])
def test_what_has_not_ended_is_found_without_a_look_at_what_was_laid_aside(
    full: tuple[Deployment, dict[str, str]], sort: str
) -> None:
    deployment, ids = full
    deployment.lay_aside()
    assert deployment.sql("SELECT count(*) >= %(many)s FROM executions_1", many=MANY) == [(True,)]
    for status in EXECUTION_LIVE:
        assert buffers(deployment, "/api/v1/executions", status=status, sort=sort) < 10
    assert [one["id"] for one in page(deployment, "/api/v1/executions", status="queued")["items"]] == [ids["e"]]


def buffers(deployment: Deployment, path: str, *, key: str | None = None, **query: str) -> int:
    """Pages of the database that this list's own statement reads (the last of those that the call takes)."""
    with watched(deployment.client.application.extensions["orchestrator"].store.engine) as sent:
        page(deployment, path, key=key, **query)
    statement, parameters = [one for one in sent if "LIMIT" in one[0] or "list_executions" in one[0]][-1]
    with deployment.store.single() as connection:
        connection.exec_driver_sql(statement, parameters)  # a routine reads the catalogue when it makes its plans
        explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
        plan = explained.scalar_one()[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
