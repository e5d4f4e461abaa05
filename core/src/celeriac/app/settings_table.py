"""Every setting: its name, what values it takes, its default, what it means, and its older name.

Pure data. `settings.py` reads it, and `scripts/make_settings_page.py` prints it as `docs/reference/settings.md`.
The names are Celery's; where a default is not Celery's, the meaning says so. A row is

    (name, kind, default, meaning)

with a kind from `settings_values.KINDS`. A `?` after the kind: None is a value of its own, although it is not the
default (where the default is None that goes without saying). Where it is neither, None means «not set».
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

Row = tuple[str, str, Any, str]


class Setting(Struct, frozen=True):
    """One declared setting.

    Attributes:
        name: Lower case, as in `app.conf.<name>`.
        kind: A key of `settings_values.KINDS`, or `choice:a|b`.
        none_ok: None is a value, not «back to the default».
        old: The upper-case name it had before Celery 4; empty if it had none.
        section: Heading on the documentation page.
        celery_default: Celery's default in words, when ours is another.
    """

    name: str
    kind: str
    default: Any
    meaning: str
    none_ok: bool = True
    old: str = ""
    section: str = "Plugins' own"
    celery_default: str = ""


GENERAL: Final[tuple[Row, ...]] = (
    ("accept_content", "texts", ("json",), "Serializers or content types that messages may have; others are refused."),
    ("result_accept_content", "texts", None, "The same for results. None: as `accept_content`."),
    ("enable_utc", "bool", True, "Times in messages are UTC rather than local time."),
    (
        "timezone",
        "timezone",
        None,
        "Zone of schedules and of `app.now()`. None: UTC, or local if `enable_utc` is off.",
    ),
    ("imports", "texts", (), "Modules with tasks that a worker imports when it starts."),
    ("include", "texts", (), "As `imports`; `--include` and `Celery(include=...)` add to it."),
)

PLUGINS: Final[tuple[Row, ...]] = (
    (
        "broker_plugin",
        "text",
        None,
        "Broker plugin by name, or `name@dist`. None: the one for the scheme of `broker_url`.",
    ),
    ("backend_plugin", "text", None, "Result backend plugin, likewise. None: by the scheme of `result_backend`."),
    (
        "plugins_blocked",
        "texts",
        (),
        "Plugins that are never loaded: `kind:name`, `kind:*` or `@dist`. `CELERIAC_PLUGINS_BLOCKED` adds to it.",
    ),
    ("plugins_allowed", "texts", None, "If there are any, only these may be loaded; `CELERIAC_PLUGINS_ALLOWED` adds."),
    ("plugins_enabled", "texts", None, "Extensions to load, by name. None: every one that is installed."),
    (
        "extension_options",
        "dict",
        {},
        "Options for extensions by name, as in `{'prometheus': {'port': 9808}}`; see the page of each.",
    ),
    (
        "allow_unsafe_serializers",
        "bool",
        False,
        "Let `accept_content` name serializers that can run the sender's code while loading (pickle).",
    ),
)

BROKER: Final[tuple[Row, ...]] = (
    (
        "broker_url",
        "urls",
        "sqlite://",
        "Where messages go. One URL, or several to fail over to (a list, or joined by `;`).",
    ),
    ("broker_read_url", "urls", None, "Another URL for receiving. None: `broker_url`."),
    ("broker_write_url", "urls", None, "Another URL for sending. None: `broker_url`."),
    ("broker_transport_options", "dict", {}, "Options for the broker plugin, by its own names; see its page."),
    ("broker_connection_timeout", "seconds?", 4.0, "How long to try to open one connection."),
    (
        "broker_connection_retry",
        "bool",
        True,
        "Open a lost connection again. False: the worker lets its tasks end and ends with code 69.",
    ),
    (
        "broker_connection_retry_on_startup",
        "bool",
        None,
        "Wait for a broker that cannot be reached when the worker starts. None: as `broker_connection_retry`.",
    ),
    (
        "broker_connection_max_retries",
        "int?",
        None,
        "Give up when Celery's worker had tried so often, at 2 s, 4 s … 30 s from one another: 3 are 12 s, 100 are "
        "46 minutes. None: never.",
    ),
    (
        "broker_channel_error_retry",
        "bool",
        False,
        "Accepted for Celery's sake: an error of a channel is always mended like a lost connection.",
    ),
    (
        "broker_failover_strategy",
        "any",
        None,
        "Of several URLs, which comes next when the one in use cannot be reached: the first in their order (None), the "
        "one after it (`round-robin`), any (`shuffle`), or what a function of them gives.",
    ),
    ("broker_heartbeat", "seconds?", 120, "Pause between signs of life on AMQP connections. 0 or None: none."),
    (
        "broker_heartbeat_checkrate",
        "number",
        3.0,
        "Accepted for Celery's sake: a missing heartbeat is noticed when it is missing.",
    ),
    ("broker_login_method", "text", None, "SASL mechanism for AMQP. None: by what the URL has."),
    ("broker_use_ssl", "ssl", False, "TLS for AMQP and Redis: True, or a dict of options for the `ssl` module."),
    (
        "broker_pool_limit",
        "int?",
        10,
        "Connections that a process opens for sending, and keeps. 0 or None: any number, and each is closed after use.",
    ),
    (
        "broker_pool_acquire_timeout",
        "seconds",
        None,
        "How long to wait for one of them while all are in use, before it is an error (`ConnectionsBusy`). None: as "
        "long as the call may take.",
    ),
    (
        "broker_native_delayed_delivery_queue_type",
        "choice:quorum|classic",
        "quorum",
        "Type of the RabbitMQ queues that hold messages until they are due.",
    ),
    ("broker_transport", "text", None, "Scheme of the URL when it is given in parts, as in the next five."),
    ("broker_host", "text", None, "Host, when the URL is given in parts."),
    ("broker_port", "int", None, "Port, when the URL is given in parts."),
    ("broker_user", "text", None, "User, when the URL is given in parts."),
    ("broker_password", "secret", None, "Password, when the URL is given in parts."),
    ("broker_vhost", "text", None, "Virtual host or database, when the URL is given in parts."),
    ("publish_timeout", "seconds", 10.0, "How long a send may take before it ends in `PublishUncertain`."),
    (
        "message_max_bytes",
        "int",
        268435456,
        "Largest body that is read, as it came and opened. A message with a larger one is set aside.",
    ),
    (
        "message_max_ratio",
        "number",
        40,
        "How many times its compressed size an opened body may have, beyond 8 MB, which it always may.",
    ),
)

TASK: Final[tuple[Row, ...]] = (
    (
        "task_unknown_patience",
        "seconds",
        600.0,
        "How long a worker offers a message of a task that it does not know to others before it sets it aside.",
    ),
    (
        "task_max_crashes",
        "int",
        3,
        "A message that was lost so often with the process or worker that had it is set aside, with FAILURE stored. "
        "0: never.",
    ),
    (
        "task_max_returns",
        "int",
        20,
        "A message that its task gave back so often (`Reject(requeue=True)`) is set aside, with FAILURE stored; also "
        "one that came back so often and was spared, and on RabbitMQ for whatever reason. 0: never.",
    ),
    (
        "task_acks_late",
        "bool",
        True,
        "Acknowledge a message once its result is stored. False: before the task runs, so a crash loses it.",
    ),
    (
        "task_acks_on_failure_or_timeout",
        "bool",
        True,
        "Acknowledge also when the task failed or ran out of time. False: refuse the message.",
    ),
    ("task_acks_on_failure", "bool", None, "The same for failures alone. None: as the above."),
    ("task_acks_on_timeout", "bool", None, "The same for time limits alone. None: as the above."),
    (
        "task_reject_on_worker_lost",
        "bool",
        None,
        "What becomes of a message whose process died. None or True: it comes back, a few times at most. "
        "False: the task has failed.",
    ),
    (
        "task_retry_on_worker_lost",
        "bool",
        False,
        "Such a death is one of the task's own retries, up to `max_retries` and after `default_retry_delay`. "
        "True goes before `task_reject_on_worker_lost`.",
    ),
    ("task_always_eager", "bool", False, "`delay()` runs the task on the spot, for tests. Nothing is sent."),
    ("task_eager_propagates", "bool", False, "Errors of tasks that run so are raised."),
    ("task_store_eager_result", "bool", False, "Their results are stored."),
    ("task_annotations", "any", None, "Attributes to put on tasks: `{name or '*': {attribute: value}}`, or a list."),
    ("task_compression", "text", None, "Compression of message bodies: `gzip`, `bzip2`, `zstd` … None: none."),
    ("task_create_missing_queues", "bool", True, "A queue that is used but not in `task_queues` is declared."),
    ("task_create_missing_queue_type", "choice:classic|quorum", "classic", "RabbitMQ's type for such queues."),
    ("task_create_missing_queue_exchange_type", "text", None, "Exchange type for such queues. None: `direct`."),
    (
        "task_default_delivery_mode",
        "delivery_mode",
        2,
        "2 or `persistent`: messages outlive the broker. 1, `transient`.",
    ),
    ("task_default_priority", "priority", None, "Priority of messages that name none."),
    ("task_inherit_parent_priority", "bool", False, "A task that a task sends takes over its priority."),
    ("task_default_queue", "text", "celery", "Queue of tasks that are not routed elsewhere."),
    ("task_default_queue_type", "choice:classic|quorum", "classic", "RabbitMQ's type for that queue."),
    ("task_default_exchange", "text", None, "Its exchange. None: of the queue's name."),
    ("task_default_exchange_type", "text", "direct", "The type of its exchange."),
    ("task_default_routing_key", "text", None, "Its routing key. None: the queue's name."),
    ("task_default_rate_limit", "rate", None, "Upper bound of starts for every task, such as `100/m`."),
    (
        "task_default_rate_limit_scope",
        "choice:worker|cluster",
        "worker",
        "Whether rate limits hold in each worker, or for all workers together.",
    ),
    ("task_ignore_result", "bool", False, "Store no results."),
    ("task_store_errors_even_if_ignored", "bool", False, "Store failures nevertheless."),
    (
        "task_protocol",
        "choice:1|2",
        2,
        "Version of the message format that is written. 1 is for workers of Celery 2 and 3; others read it too.",
    ),
    ("task_publish_retry", "bool", True, "Try again when a message could not be sent."),
    (
        "task_publish_retry_policy",
        "dict",
        {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2},
        "How often and how long, pauses in seconds.",
    ),
    (
        "task_queues",
        "queues",
        None,
        "The queues there are: `kombu.Queue` objects, or `{name: options}`. None: the default.",
    ),
    ("task_queue_max_priority", "priority", None, "Give every queue priorities up to this one (RabbitMQ)."),
    (
        "task_routes",
        "any",
        None,
        "Where tasks go: `{name or pattern: {'queue': ...}}`, a function, or a list of these.",
    ),
    (
        "task_remote_tracebacks",
        "bool",
        False,
        "`get()` raises errors of tasks with the worker's frames (needs `celeriac[tblib]`).",
    ),
    ("task_repr_maxlevels", "int", 3, "How deep arguments are shown in logs and monitors."),
    ("task_send_sent_event", "bool", False, "Whoever sends a task also sends the event `task-sent`."),
    ("task_serializer", "text", "json", "Serializer of message bodies."),
    ("task_soft_time_limit", "seconds", None, "A run longer than this gets `SoftTimeLimitExceeded` raised in it."),
    ("task_time_limit", "seconds", None, "A run longer than this has its process killed."),
    ("task_revoke_expires", "seconds", 604_800.0, "How long a revocation is kept, by the clock of its store."),
    ("task_track_started", "bool", False, "Store the state STARTED when a run begins."),
    ("task_allow_error_cb_on_chord_header", "bool", False, "A chord's `link_error` also goes to its header's tasks."),
)

WORKER: Final[tuple[Row, ...]] = (
    (
        "worker_concurrency",
        "concurrency",
        None,
        "How many tasks run at once. None, 0 or `auto`: as there are CPUs to use.",
    ),
    ("worker_pool", "object", "prefork", "Pool plugin that runs the tasks: `prefork`, `threads`, `solo` …"),
    (
        "worker_prefetch_multiplier",
        "int",
        None,
        "Hold this many messages per slot; 0: no bound. None: as many as are a few milliseconds of work.",
    ),
    ("worker_disable_prefetch", "bool", False, "Receive a message only when a slot is free for it."),
    (
        "worker_eta_task_limit",
        "int",
        None,
        "How many messages may wait in the worker for their time; the others wait in the broker. None: 1000.",
    ),
    (
        "worker_enable_prefetch_count_reduction",
        "bool",
        True,
        "After a lost connection, hold fewer messages until the tasks end whose messages have gone elsewhere.",
    ),
    ("worker_max_tasks_per_child", "count", None, "Replace a process of the pool after so many tasks; 0: never."),
    (
        "worker_max_memory_per_child",
        "kibibytes",
        None,
        "Replace one that has grown beyond this after its task; 0: never.",
    ),
    (
        "worker_stand_in_limit",
        "seconds",
        3600.0,
        "For so long a small process beside the worker keeps the lease of one whose tasks run in its own process and "
        "hold its interpreter up; then its messages go to others. 0: there is none.",
    ),
    (
        "worker_watchdog",
        "seconds",
        10.0,
        "When messages are ready, slots are free, and nothing has come for so long, the link to the broker is made "
        "anew; when three new links bring nothing either, the worker ends with code 3. 0: never.",
    ),
    (
        "worker_recycle_stuck",
        "bool",
        False,
        "When tasks beyond their hard time limit hold half the slots of a pool that cannot end them (`threads`, "
        "`solo`), the worker stops warmly without them and ends with code 4, for its supervisor to start it anew.",
    ),
    ("worker_ready_file", "text", None, "A file that is there, and touched every second, while the worker consumes."),
    ("worker_health_port", "int", None, "Answer `GET /ready` and `GET /live` on this port. None: do not. 0: any port."),
    ("worker_health_host", "text", "127.0.0.1", "The address to answer them on; `0.0.0.0` is all of this machine's."),
    ("worker_pool_putlocks", "bool", True, "Accepted for Celery's sake; a pool here never gets more than its slots."),
    ("worker_pool_restarts", "bool", False, "Allow the remote command `pool_restart`."),
    (
        "worker_pool_start_method",
        "choice:fork|spawn",
        "fork",
        "How the processes of the pool are made: as copies of the worker, or as fresh interpreters that import the app "
        "(`prefork` can).",
    ),
    (
        "worker_proc_alive_timeout",
        "seconds",
        4.0,
        "How long a new one may take until it can run a task; one that is spawned, 60 s unless this is set.",
    ),
    ("worker_lost_wait", "seconds", 10.0, "Accepted for Celery's sake; a dead process is noticed at once."),
    (
        "worker_shutdown_grace",
        "seconds",
        None,
        "How long a warm shutdown waits for running tasks. None: until they end.",
    ),
    (
        "worker_spool_results",
        "int",
        1000,
        "How many results wait in the worker while the result store is away; then it takes no more messages.",
    ),
    ("worker_spool_bytes", "int", 67_108_864, "The same in bytes."),
    ("worker_soft_shutdown_timeout", "seconds", 0.0, "Time that tasks get to end before a cold shutdown stops them."),
    ("worker_enable_soft_shutdown_on_idle", "bool", False, "Wait that long before it even when no task runs."),
    (
        "worker_cancel_long_running_tasks_on_connection_loss",
        "bool",
        False,
        "Cancel running tasks when the broker is lost, for their messages come again; none with `acks_late=False`.",
    ),
    (
        "worker_deduplicate_successful_tasks",
        "bool",
        False,
        "A message that comes again after its task has succeeded is acknowledged, not run; what follows is sent.",
    ),
    ("worker_direct", "bool", False, "Also consume a queue of this worker's own, `<node>.dq2`."),
    ("worker_disable_rate_limits", "bool", False, "Ignore the rate limits of tasks."),
    ("worker_mingle", "bool", False, "At the start, ask other workers what is revoked (`--mingle`)."),
    ("worker_gossip", "bool", False, "Listen to what other workers say of themselves (`--gossip`)."),
    ("worker_enable_remote_control", "bool", True, "Listen to `celeriac inspect` and `celeriac control`."),
    ("worker_send_task_events", "bool", False, "Tell monitors about every task (`-E`)."),
    (
        "worker_detect_quorum_queues",
        "bool",
        True,
        "Accepted for Celery's sake: on RabbitMQ limits are always per consumer, as quorum queues want them.",
    ),
    (
        "worker_state_db",
        "text",
        None,
        "File in which revocations outlive the worker, where neither broker nor result backend can keep them.",
    ),
    ("worker_timer", "object", None, "Accepted for Celery's sake; there is one timer."),
    (
        "worker_timer_precision",
        "seconds",
        1.0,
        "Accepted for Celery's sake: the worker sleeps until the next thing is due.",
    ),
    (
        "worker_agent",
        "object",
        None,
        "Class of an agent beside the worker: called with a kombu connection, started and stopped with the steps.",
    ),
    ("worker_autoscaler", "object", "celeriac.worker.autoscale:Autoscaler", "Class that grows and shrinks the pool."),
    (
        "worker_consumer",
        "object",
        "celeriac.worker.consumer:Consumer",
        "Class, a subclass of this one, that starts the steps and hears of unknown messages. The loop stays ours.",
    ),
)

LOGGING: Final[tuple[Row, ...]] = (
    ("worker_log_style", "choice:console|json", "console", "Log lines for people, or one JSON object each."),
    ("worker_log_format", "text", None, "A `logging` format for the worker's lines. None: by `worker_log_style`."),
    ("worker_log_datefmt", "text", None, "`strftime` format of times in them."),
    ("worker_task_log_format", "text", None, "The same for task loggers; may use `task_name` and `task_id`."),
    ("worker_task_log_datefmt", "text", None, "`strftime` format of times in them."),
    ("worker_log_color", "bool", None, "Colours. None: on a terminal."),
    (
        "worker_hijack_root_logger",
        "bool",
        True,
        "Remove other handlers of the root logger. False: where it has some, they keep the log to themselves.",
    ),
    ("worker_redirect_stdouts", "bool", True, "What tasks print becomes lines of the log."),
    ("worker_redirect_stdouts_level", "loglevel", "WARNING", "At this level."),
)

RESULT: Final[tuple[Row, ...]] = (
    (
        "result_backend",
        "backend",
        None,
        "Where results are kept: a URL. None: nowhere, except that an app with no broker of its own "
        "gets `sqlite://` for both.",
    ),
    (
        "result_max_bytes",
        "int",
        16777216,
        "Largest result that is stored, encoded. A task that returns a larger one has failed.",
    ),
    ("result_expires", "seconds?", 86400.0, "How long results are kept. 0 or None: for ever."),
    ("result_failure_expires", "seconds", None, "The same for failures. None: as the above."),
    (
        "result_chord_expires",
        "seconds",
        None,
        "The same for chords, which are kept at least while parts may come. None: as `result_expires`.",
    ),
    ("result_extended", "bool", False, "Keep the task's name, arguments, worker, retries and queue with the result."),
    ("result_serializer", "text", "json", "Serializer of results."),
    (
        "result_compression",
        "text",
        None,
        "Compression of stored successes: `gzip`, `bzip2`, `xz`, `zstd` … None: none. Of no effect in Django's stores, "
        "whose form (text in columns, objects in a cache) django-celery-results could not read if it were compressed.",
    ),
    ("result_persistent", "bool", None, "Replies of the `rpc` backend outlive the broker."),
    ("result_exchange", "text", "celeryresults", "Accepted for Celery's sake; replies go to their queue directly."),
    ("result_exchange_type", "text", "direct", "Accepted for Celery's sake."),
    ("result_cache_max", "int", -1, "How many successes a client remembers. 0: no bound, -1: none."),
    ("result_backend_transport_options", "dict", {}, "Options for the result backend plugin, by its own names."),
    (
        "result_backend_always_retry",
        "bool",
        False,
        "Try again when the result store cannot be reached by who reads or writes a state. `get` waits for its store, "
        "and workers hold their results for it, in any case.",
    ),
    ("result_backend_max_retries", "number", float("inf"), "How often."),
    ("result_backend_base_sleep_between_retries_ms", "milliseconds", 10, "First pause; each one is twice the last."),
    ("result_backend_max_sleep_between_retries_ms", "milliseconds", 10_000, "Longest pause."),
    (
        "result_backend_thread_safe",
        "bool",
        False,
        "Accepted for Celery's sake: the threads of a process always share one backend object.",
    ),
    ("result_chord_retry_interval", "seconds", 1.0, "Pause between looks at a chord that has to be polled."),
    (
        "result_chord_patience",
        "seconds",
        None,
        "A chord of which no part has come for so long has failed. None: the longest that a part may take by its "
        "delays, time limits and autoretries, and an hour.",
    ),
    ("result_chord_join_timeout", "seconds", 3.0, "How long to wait for the parts of a chord that is complete."),
    ("override_backends", "dict", {}, "Result backend classes, or their paths, by scheme, ahead of the plugins."),
)

CONTROL: Final[tuple[Row, ...]] = (
    ("control_exchange", "text", "celery", "First part of the names of the queues for remote control."),
    ("control_queue_ttl", "seconds?", 300.0, "How long a command waits in a worker's control queue."),
    ("control_queue_expires", "seconds?", 10.0, "When an unused control queue is removed."),
    ("control_queue_exclusive", "bool", True, "A control queue belongs to one connection."),
    ("control_queue_durable", "bool", False, "It outlives the broker; not together with the above."),
)

EVENT: Final[tuple[Row, ...]] = (
    ("event_exchange", "text", "celeryev", "Exchange of events."),
    ("event_queue_prefix", "text", "celeryev", "First part of the names of monitors' queues."),
    ("event_queue_ttl", "seconds?", 5.0, "How long an event waits for a monitor."),
    ("event_queue_expires", "seconds?", 60.0, "When an unused queue of a monitor is removed."),
    ("event_queue_exclusive", "bool", True, "Such a queue belongs to one connection."),
    ("event_queue_durable", "bool", False, "It outlives the broker; not together with the above."),
    ("event_serializer", "text", "json", "Serializer of events."),
)

BEAT: Final[tuple[Row, ...]] = (
    ("beat_schedule", "dict", {}, "What is sent when: `{name: {'task': ..., 'schedule': ..., 'args': ...}}`."),
    (
        "beat_scheduler",
        "object",
        "celeriac.beat:PersistentScheduler",
        "The scheduler: a class as `module:Class`, or the name of an entry point.",
    ),
    (
        "beat_schedule_filename",
        "text",
        "celeriacbeat-schedule",
        "File that notes what was sent last, if named; else used only when broker and backend keep no state.",
    ),
    ("beat_max_loop_interval", "seconds", 0.0, "Longest sleep between looks at the schedule. 0: the scheduler's own."),
    (
        "beat_sync_every",
        "int",
        0,
        "Schedulers of others: write after so many sends. 0: every three minutes. Ours notes each send.",
    ),
    ("beat_cron_starting_deadline", "seconds", None, "A `crontab` run missed by more than this is left out."),
    ("beat_enable_remote_control", "bool", False, "The scheduler answers `ping` of remote control."),
    (
        "beat_remote_control_max_tick_age",
        "seconds",
        None,
        "… unless its last turn is older than this. None: twice its longest sleep, at least a minute.",
    ),
)

SECURITY: Final[tuple[Row, ...]] = (
    ("security_key", "text", None, "File with the private key that signs messages."),
    ("security_key_password", "secret", None, "Its password."),
    ("security_certificate", "text", None, "File with the certificate that belongs to it."),
    ("security_cert_store", "text", None, "Folder, or pattern of files, with the certificates to trust."),
    ("security_digest", "text", "sha256", "Hash used for signatures."),
    ("security_serializer", "text", "json", "Serializer of what stands inside a signed message."),
    (
        "message_seal_key",
        "secret",
        None,
        "Seal every message, headers and body, with this key, and run none without a seal. Several keys, separated by "
        "white space: the first seals, all are accepted.",
    ),
)

REDIS: Final[tuple[Row, ...]] = (
    ("redis_backend_use_ssl", "ssl", None, "TLS for the Redis result store: True, or a dict of options."),
    ("redis_host", "text", None, "Host, when `result_backend` does not have it."),
    ("redis_port", "int", None, "Port, likewise."),
    ("redis_db", "int", None, "Database number, likewise."),
    ("redis_username", "text", None, "User, likewise."),
    ("redis_password", "secret", None, "Password, likewise."),
    ("redis_client_name", "text", None, "Name that the connections bear on the server."),
    ("redis_max_connections", "int", None, "Idle connections kept for results. None: 16."),
    ("redis_socket_timeout", "seconds?", 120.0, "How long one answer may take; never more than 10 seconds."),
    ("redis_socket_connect_timeout", "seconds", None, "How long connecting may take. None: 4 seconds."),
    (
        "redis_retry_on_timeout",
        "bool",
        False,
        "Accepted for Celery's sake: each command may be sent twice, so one without an answer always is.",
    ),
    ("redis_socket_keepalive", "bool", False, "Accepted for Celery's sake: TCP keep-alive is always on."),
    (
        "redis_backend_health_check_interval",
        "seconds",
        None,
        "Ask a connection that was idle for longer for a sign of life before its next use. None: never.",
    ),
    ("redis_backend_credential_provider", "any", None, "An object, or its path, that gives user and password."),
)

DATABASE: Final[tuple[Row, ...]] = (
    ("database_url", "text", None, "SQLAlchemy's URL of the database, when `result_backend` does not have it."),
    (
        "database_engine_options",
        "dict",
        {"pool_pre_ping": True, "pool_recycle": 3600},
        "Arguments of SQLAlchemy's `create_engine`.",
    ),
    ("database_engine_callback", "any", None, "A function, or its path, that is given the new engine."),
    ("database_short_lived_sessions", "bool", False, "Close the session after each use."),
    ("database_table_schemas", "dict", None, "Schemas of the tables: `{'task': ..., 'group': ...}`."),
    ("database_table_names", "dict", None, "Names of the tables: `{'task': ..., 'group': ...}`."),
    (
        "database_create_tables_at_setup",
        "bool",
        True,
        "Create the tables at the start rather than at the first result.",
    ),
)

DJANGO: Final[tuple[Row, ...]] = (
    (
        "db_reuse_max",
        "int",
        None,
        "Close a worker process's database connections after so many tasks. None: by CONN_MAX_AGE.",
    ),
)

STORES: Final[tuple[Row, ...]] = (
    ("cache_backend", "text", None, "URL of the memcached servers, when `result_backend` does not have it."),
    ("cache_backend_options", "dict", {}, "Arguments of the memcached client."),
    ("arangodb_backend_settings", "dict", None, "Connection to ArangoDB."),
    ("azureblockblob_container_name", "text", "celery", "Container for results."),
    ("azureblockblob_base_path", "text", "", "First part of the blobs' names."),
    ("azureblockblob_retry_initial_backoff_sec", "seconds", 2, "First pause between tries."),
    ("azureblockblob_retry_increment_base", "int", 2, "By how much each pause is longer than the last."),
    ("azureblockblob_retry_max_attempts", "int", 3, "How many tries."),
    ("azureblockblob_connection_timeout", "seconds", 20, "How long connecting may take."),
    ("azureblockblob_read_timeout", "seconds", 120, "How long one answer may take."),
    ("cassandra_servers", "texts", None, "Hosts to contact first."),
    ("cassandra_port", "int", None, "Their port."),
    ("cassandra_bundle_path", "text", None, "Astra's bundle, by the name in Celery's list of settings."),
    ("cassandra_secure_bundle_path", "text", None, "Astra's bundle, instead of servers."),
    ("cassandra_keyspace", "text", None, "Keyspace for results."),
    ("cassandra_table", "text", None, "Table for results."),
    ("cassandra_entry_ttl", "seconds", None, "How long rows are kept."),
    ("cassandra_read_consistency", "text", None, "Consistency level of reads."),
    ("cassandra_write_consistency", "text", None, "Consistency level of writes."),
    ("cassandra_auth_provider", "text", None, "Name of the driver's class for logging in."),
    ("cassandra_auth_kwargs", "dict", None, "Its arguments."),
    ("cassandra_options", "dict", {}, "More arguments of the driver's `Cluster`."),
    ("cosmosdbsql_database_name", "text", "celerydb", "Database for results."),
    ("cosmosdbsql_collection_name", "text", "celerycol", "Collection for results."),
    ("cosmosdbsql_consistency_level", "text", "Session", "Consistency level."),
    ("cosmosdbsql_max_retry_attempts", "int", 9, "Tries when the service asks to slow down."),
    ("cosmosdbsql_max_retry_wait_time", "seconds", 30, "How long these may take."),
    ("couchbase_backend_settings", "dict", None, "Connection to Couchbase."),
    ("dynamodb_endpoint_url", "text", None, "Address of a DynamoDB that is not Amazon's."),
    ("elasticsearch_retry_on_timeout", "bool", None, "Try again when an answer did not come in time."),
    ("elasticsearch_max_retries", "int", None, "How often."),
    ("elasticsearch_timeout", "seconds", None, "How long one answer may take."),
    ("elasticsearch_save_meta_as_text", "bool", True, "Store results as JSON text rather than as objects."),
    ("firestore_project", "text", None, "Google Cloud project of the Firestore that counts chords."),
    ("gcs_bucket", "text", None, "Bucket for results."),
    ("gcs_project", "text", None, "Google Cloud project of the bucket."),
    ("gcs_base_path", "text", "", "First part of the objects' names."),
    ("gcs_ttl", "seconds", 0, "How long objects are kept; the bucket needs a lifecycle rule. 0: for ever."),
    ("gcs_threadpool_maxsize", "int", 10, "Threads that fetch results."),
    ("mongodb_backend_settings", "dict", None, "Connection to MongoDB."),
    ("s3_access_key_id", "secret", None, "Access key."),
    ("s3_secret_access_key", "secret", None, "Secret of the access key."),
    ("s3_bucket", "text", None, "Bucket for results."),
    ("s3_base_path", "text", None, "First part of the objects' names."),
    ("s3_endpoint_url", "text", None, "Address of an S3 that is not Amazon's."),
    ("s3_region", "text", None, "Region of the bucket."),
)

#: Every daemon command may have its own.
DAEMON: Final[tuple[Row, ...]] = tuple(
    row
    for command in ("worker", "beat", "events")
    for row in (
        (f"{command}_logfile", "text", None, f"File for the log of `celeriac {command}`."),
        (f"{command}_pidfile", "text", None, f"File with the process id of `celeriac {command}`."),
        (f"{command}_uid", "any", None, f"User, or its number, that `celeriac {command}` becomes."),
        (f"{command}_gid", "any", None, f"Group, or its number, that `celeriac {command}` takes."),
        (f"{command}_umask", "any", None, f"File mode mask of `celeriac {command}`, octal."),
        (f"{command}_executable", "text", None, f"Python with which a detached `celeriac {command}` runs."),
    )
)

SECTIONS: Final[tuple[tuple[str, tuple[Row, ...]], ...]] = (
    ("General", GENERAL),
    ("Plugins", PLUGINS),
    ("Broker", BROKER),
    ("Tasks", TASK),
    ("Worker", WORKER),
    ("Logging", LOGGING),
    ("Results", RESULT),
    ("Results in Redis", REDIS),
    ("Results in a database", DATABASE),
    ("Results in other stores", STORES),
    ("In a Django project", DJANGO),
    ("Periodic tasks", BEAT),
    ("Remote control", CONTROL),
    ("Events", EVENT),
    ("Signed messages", SECURITY),
    ("Daemons", DAEMON),
)

#: Settings that only celeriac has, so that no upper-case name of theirs was ever in use.
OWN: Final = frozenset(
    {row[0] for row in PLUGINS}
    | {
        "message_max_bytes",
        "message_max_ratio",
        "message_seal_key",
        "publish_timeout",
        "result_max_bytes",
        "security_serializer",
        "task_max_crashes",
        "task_max_returns",
        "task_unknown_patience",
        "worker_health_host",
        "worker_health_port",
        "worker_log_style",
        "worker_ready_file",
        "worker_recycle_stuck",
        "worker_shutdown_grace",
        "worker_stand_in_limit",
        "worker_watchdog",
    }
)

#: Celery's settings that nothing here reads so far. Giving one of them warns, and the documentation marks it.
#: `tests/house/test_settings_read.py` keeps this list true.
NOT_YET: Final[frozenset[str]] = frozenset()

#: Celery's default in words, where ours is another.
CELERY_DEFAULTS: Final = {
    "broker_url": "`amqp://`",
    "broker_connection_max_retries": "100",
    "result_backend": "None, always",
    "task_acks_late": "False",
    "task_reject_on_worker_lost": "None, which meant False",
    "worker_prefetch_multiplier": "4",
    "worker_log_format": "a format with time, level and process",
    "worker_task_log_format": "the same with the task's name and id",
    "worker_eta_task_limit": "None, which meant no bound",
    "beat_schedule_filename": "`celerybeat-schedule`",
}

#: First part of a name → what it was before Celery 4; other names were simply upper case.
OLD_PREFIXES: Final = {"task": "CELERY_", "worker": "CELERYD_", "beat": "CELERYBEAT_"}
OLD_WITH_CELERY: Final = ("event_", "result_", "redis_", "security_", "cache_")

#: Old names that follow no rule.
ODD_OLD_NAMES: Final = {
    "accept_content": "CELERY_ACCEPT_CONTENT",
    "imports": "CELERY_IMPORTS",
    "include": "CELERY_INCLUDE",
    "timezone": "CELERY_TIMEZONE",
    "result_accept_content": "",
    "task_compression": "CELERY_MESSAGE_COMPRESSION",
    "task_eager_propagates": "CELERY_EAGER_PROPAGATES_EXCEPTIONS",
    "task_protocol": "CELERY_TASK_PROTOCOL",
    "task_publish_retry": "CELERY_TASK_PUBLISH_RETRY",
    "task_publish_retry_policy": "CELERY_TASK_PUBLISH_RETRY_POLICY",
    "task_send_sent_event": "CELERY_SEND_TASK_SENT_EVENT",
    "task_serializer": "CELERY_TASK_SERIALIZER",
    "task_soft_time_limit": "CELERYD_TASK_SOFT_TIME_LIMIT",
    "task_time_limit": "CELERYD_TASK_TIME_LIMIT",
    "worker_direct": "CELERY_WORKER_DIRECT",
    "worker_disable_rate_limits": "CELERY_DISABLE_RATE_LIMITS",
    "worker_enable_remote_control": "CELERY_ENABLE_REMOTE_CONTROL",
    "worker_lost_wait": "CELERYD_WORKER_LOST_WAIT",
    "worker_redirect_stdouts": "CELERY_REDIRECT_STDOUTS",
    "worker_redirect_stdouts_level": "CELERY_REDIRECT_STDOUTS_LEVEL",
    "worker_send_task_events": "CELERY_SEND_EVENTS",
    "result_cache_max": "CELERY_MAX_CACHED_RESULTS",
    "result_expires": "CELERY_TASK_RESULT_EXPIRES",
    "database_url": "CELERY_RESULT_DBURI",
    "database_engine_options": "CELERY_RESULT_ENGINE_OPTIONS",
    "database_short_lived_sessions": "CELERY_RESULT_DB_SHORT_LIVED_SESSIONS",
    "database_table_names": "CELERY_RESULT_DB_TABLENAMES",
}


def old_name(name: str) -> str:
    """The upper-case name that a setting had before Celery 4; empty for those that are ours alone."""
    if name in OWN:
        return ""
    odd = ODD_OLD_NAMES.get(name)
    if odd is not None:
        return odd
    if name.startswith(OLD_WITH_CELERY):
        return f"CELERY_{name.upper()}"
    first, _, rest = name.partition("_")
    prefix = OLD_PREFIXES.get(first)
    return prefix + rest.upper() if prefix else name.upper()


def read_rows() -> Iterator[Setting]:
    """All settings of the table, section by section."""
    for section, rows in SECTIONS:
        for name, kind, default, meaning in rows:
            yield Setting(
                name=name,
                kind=kind.removesuffix("?"),
                default=default,
                meaning=meaning,
                none_ok=default is None or kind.endswith("?"),
                old=old_name(name),
                section=section,
                celery_default=CELERY_DEFAULTS.get(name, ""),
            )


TABLE: Final[dict[str, Setting]] = {setting.name: setting for setting in read_rows()}
