"""The Celery app: queues by class, priorities, and settings under which every message may be lost or doubled.

Correctness comes from the claims in PostgreSQL and from reconcile; what is set here is for speed and for what
operators expect of `celery worker`, `celery inspect` and Flower.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from celery import Celery
from kombu import Exchange, Queue
from kombu.transport import TRANSPORT_ALIASES

from orchestrator.config import Settings, load_settings
from workers.transport import Connection

QUEUES = ("control", "cpu", "io")
PRIORITY_STEPS = list(range(10))


def broker_priority(priority: int) -> int:
    """0 is the highest on Redis; 9 is the highest for our users."""
    return 9 - priority


def configure(app: Celery, settings: Settings) -> Celery:
    """Point `app` at the broker that `settings` name; before it has made its first connection."""
    transport = {
        # What is delivered and not acknowledged is kept by the worker, which gives it back when it stops; for one
        # that was killed, reconcile rings again. A copy in Redis would cost two more round trips a message, to come
        # back an hour later.
        "ack_emulation": False,
        # These three must be the same for every producer and consumer, or priorities are other lists.
        "priority_steps": PRIORITY_STEPS,
        "sep": ":",
        "queue_order_strategy": "priority",
        "socket_connect_timeout": 5,
        "socket_timeout": 30,
        "health_check_interval": 30,
    }
    # By its alias and not as `broker_transport`: URLs keep their scheme, by which Flower tells the broker.
    TRANSPORT_ALIASES.update(dict.fromkeys(("redis", "rediss"), "workers.transport:Transport"))
    app.loader.override_backends = dict.fromkeys(("redis", "rediss"), "workers.results:ChordCounter")
    app.amqp.autoexchange = lambda _: Exchange("")  # type: ignore[assignment]  # the stubs take it for an exchange
    app.amqp.Connection = Connection
    app.steps["worker"].add("workers.process:Exit")
    app.conf.update(
        broker_url=settings.broker.url,
        result_backend=settings.broker.url,
        include=["workers.tasks"],
        # No exchange of their own: a message goes straight to its queue, so that a broker which lost its
        # bindings along with everything else still takes it.
        task_queues=[Queue(name, Exchange(""), routing_key=name) for name in QUEUES],
        task_default_queue="control",
        task_default_exchange="",
        # A step may name any queue, which workers started with `-Q name` serve.
        task_create_missing_queues=True,
        broker_transport_options=transport,
        result_backend_transport_options=transport,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        redis_socket_timeout=30,
        redis_socket_connect_timeout=5,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_soft_shutdown_timeout=5.0,
        worker_enable_soft_shutdown_on_idle=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        task_ignore_result=True,
        result_expires=3600,
        task_serializer="json",
        result_serializer="json",
        accept_content=["json"],
        task_publish_retry_policy={"max_retries": 3, "interval_start": 0, "interval_step": 0.2, "interval_max": 1},
        enable_utc=True,
        worker_hijack_root_logger=True,
        # Claims decide; Celery's own time limits would kill a process that serves many steps.
        task_time_limit=None,
        **_redbeat_connection(settings.broker.url),
        redbeat_lock_timeout=60,
        beat_max_loop_interval=5,
    )
    return app


def _redbeat_connection(url: str) -> dict[str, object]:
    """RedBeat's own settings for the broker, its login apart: `celery report` masks what is called a password, and
    of the URLs only the broker's."""
    parts = urlsplit(url)
    login = {"username": parts.username, "password": parts.password}
    return {
        "redbeat_redis_url": parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
        "redbeat_redis_options": {
            **{name: unquote(value) for name, value in login.items() if value},
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
        },
    }


app = configure(Celery("orchestrator"), load_settings())
