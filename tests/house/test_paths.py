"""Celery's import paths hold with the first word changed: what a program may import, by module.

kombu's own names are kombu's. `celeriac.<path>` for each line here is what `celery.<path>` is to a program of Celery's.
"""

from __future__ import annotations

import importlib

import pytest

PATHS = {
    "celeriac": (
        "Celery bugreport shared_task Task current_app current_task Signature signature maybe_signature subtask chain "
        "group uuid VERSION __version__ version_info VERSION_BANNER SERIES maybe_patch_concurrency"
    ),
    "celeriac.app": (
        "Celery shared_task app_or_default default_app bugreport enable_trace disable_trace push_current_task "
        "pop_current_task"
    ),
    "celeriac.app.base": "Celery App",
    "celeriac.app.control": "Control Inspect flatten_reply",
    "celeriac.app.task": "Task Context BaseTask",
    "celeriac.app.utils": "AppPickler Settings bugreport",
    "celeriac.app.amqp": "AMQP Queues",
    "celeriac.app.annotations": "",
    "celeriac.app.log": "Logging TaskFormatter",
    "celeriac.app.registry": "TaskRegistry",
    "celeriac.bootsteps": "Blueprint ConsumerStep StartStopStep Step",
    "celeriac.canvas": "Signature chain group maybe_signature signature",
    "celeriac.concurrency": "get_available_pool_names get_implementation",
    "celeriac.contrib.abortable": "AbortableAsyncResult AbortableTask",
    "celeriac.contrib.rdb": "Rdb debugger set_trace DEFAULT_PORT",
    "celeriac.contrib.sphinx": "TaskDirective TaskDocumenter setup",
    "celeriac.exceptions": (
        "AlreadyRegistered AlwaysEagerIgnored BackendError BackendGetMetaError BackendStoreError CDeprecationWarning "
        "CPendingDeprecationWarning CeleryCommandException CeleryError CeleryWarning ChordError "
        "DuplicateNodenameWarning DuplicateTaskNameWarning FixupWarning Ignore ImproperlyConfigured IncompleteStream "
        "InvalidTaskError MaxRetriesExceededError NotConfigured NotRegistered OperationalError QueueNotFound Reject "
        "Retry RetryTaskError SecurityError SecurityWarning SoftTimeLimitExceeded SystemTerminate TaskError "
        "TaskPredicate TaskRevokedError Terminated TimeLimitExceeded TimeoutError WorkerLostError WorkerShutdown "
        "WorkerTerminate reraise"
    ),
    "celeriac.loaders": "get_loader_cls",
    "celeriac.loaders.app": "AppLoader",
    "celeriac.loaders.base": "BaseLoader",
    "celeriac.loaders.default": "Loader DEFAULT_CONFIG_MODULE",
    "celeriac.platforms": (
        "EX_CANTCREAT EX_FAILURE EX_OK EX_UNAVAILABLE EX_USAGE SYSTEM IS_macOS IS_WINDOWS Pidfile PIDFile LockFailed "
        "create_pidlock DaemonContext detached maybe_drop_privileges parse_uid parse_gid setuid setgid initgroups "
        "setgroups signals Signals signal_name get_fdmax close_open_fds isatty strargv set_process_title ignore_errno "
        "get_errno_name pyimplementation"
    ),
    "celeriac.result": (
        "AsyncResult EagerResult GroupResult ResultBase ResultSet allow_join_result assert_will_not_block "
        "denied_join_result result_from_tuple"
    ),
    "celeriac.security": "disable_untrusted_serializers setup_security",
    "celeriac.signals": (
        "after_setup_logger after_setup_task_logger after_task_publish beat_embedded_init beat_init "
        "before_task_publish celeryd_after_setup celeryd_init eventlet_pool_apply eventlet_pool_postshutdown "
        "eventlet_pool_preshutdown eventlet_pool_started heartbeat_sent import_modules setup_logging "
        "task_failure task_internal_error task_postrun task_prerun task_received task_rejected task_retry "
        "task_revoked task_sent task_success task_unknown user_preload_options worker_before_create_process "
        "worker_init worker_process_init worker_process_shutdown worker_ready worker_shutdown worker_shutting_down"
    ),
    "celeriac.states": (
        "ALL_STATES EXCEPTION_STATES FAILURE IGNORED PENDING PROPAGATE_STATES READY_STATES RECEIVED REJECTED RETRY "
        "REVOKED STARTED SUCCESS UNREADY_STATES precedence state"
    ),
    "celeriac.utils": (
        "gen_task_name gen_unique_id get_cls_by_name get_full_cls_name import_from_cwd instantiate nodename nodesplit "
        "uuid worker_direct"
    ),
    "celeriac.utils.imports": "gen_task_name import_from_cwd instantiate qualname symbol_by_name",
    "celeriac.utils.log": "ColorFormatter LOG_LEVELS base_logger get_logger get_task_logger mlevel task_logger",
    "celeriac.utils.saferepr": "saferepr",
    "celeriac.utils.time": "get_exponential_backoff_interval is_naive localize make_aware maybe_make_aware to_utc",
    "celeriac.worker": "WorkController",
    "celeriac.worker.components": "Beat Consumer Hub Pool StateDB Timer",
    "celeriac.worker.consumer": "Agent Connection Consumer Control Events Gossip Heart Mingle Tasks",
    "celeriac.utils.timer2": "Entry Timer",
    "celeriac.worker.request": "Request",
    "celeriac.utils.nodenames": (
        "anon_nodename default_nodename gethostname host_format node_format nodename nodesplit worker_direct"
    ),
}


@pytest.mark.parametrize("module", sorted(PATHS))
def test_a_module_has_celerys_names(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in PATHS[module].split() if not hasattr(found, name)] == []


def test_the_front_door_lists_what_it_has() -> None:
    import celeriac

    assert [name for name in celeriac.__all__ if not hasattr(celeriac, name)] == []
    assert len(set(celeriac.__all__)) == len(celeriac.__all__)
