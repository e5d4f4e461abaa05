"""Build, start, stop: a page of plain lines in order.

The command line makes a `Worker` and runs it; tests and programs may too, in any thread (signals are then left alone).
"""

from __future__ import annotations

import contextlib
import faulthandler
import inspect
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from msgspec import structs

from celeriac import signals
from celeriac.app.rate_limits import NO_STATE, cluster_wide, trouble_with
from celeriac.beat import EmbeddedService
from celeriac.bootsteps import Blueprint
from celeriac.contrib import rdb
from celeriac.exceptions import (
    CeleriacError,
    ImproperlyConfigured,
    OperationalError,
    PluginBroken,
    PoolBroken,
    TransportUnreachable,
    WorkerShutdown,
    WorkerTerminate,
)
from celeriac.execution.execute import TaskProgram
from celeriac.execution.followup import after_no_sending
from celeriac.kernel.discovery import PluginInfo
from celeriac.log import Formats, TaskLog, open_stream
from celeriac.messaging.broadcasts import require_fanout
from celeriac.resultstore import Stores
from celeriac.spec.data import Delivery, QueueSpec
from celeriac.spec.pool import Pool, PoolOptions, Recipe
from celeriac.spec.transport import Transport
from celeriac.utils.ids import default_nodename, uuid
from celeriac.utils.nodenames import worker_direct
from celeriac.utils.systemd import Pulse, ServiceManager
from celeriac.utils.timer2 import Timer
from celeriac.worker.broadcasts import Broadcasts
from celeriac.worker.cluster_rates import ClusterRates
from celeriac.worker.consumer import Loop
from celeriac.worker.control import WorkerState
from celeriac.worker.feed import Feed
from celeriac.worker.health import Door, Health, ReadyFile
from celeriac.worker.held_up import WARM_S, EndGuard, find_place
from celeriac.worker.host import Consumer, agent_class, consumer_class
from celeriac.worker.joins import Joiner
from celeriac.worker.link import Link
from celeriac.worker.patience import patience_of
from celeriac.worker.poller import Sleeper
from celeriac.worker.remote import Errands, Remote
from celeriac.worker.request import Request, make_request
from celeriac.worker.revoked import RevocationWatch, Revoked
from celeriac.worker.shutdown import wind_down
from celeriac.worker.siblings import Gossip, mingle_with_all
from celeriac.worker.spawned import LogWords, write_recipe
from celeriac.worker.spool import Spool
from celeriac.worker.standin import StandIn, describe, make_stand_in
from celeriac.worker.stuck import StuckSlots
from celeriac.worker.watchdog import Watchdog
from celeriac.worker.window import Window

if TYPE_CHECKING:
    from celeriac.spec.listener import RunListener

EXIT_OK: Final = 0
EXIT_FORCED: Final = 1
#: Messages were ready and none came, over several new links (see `watchdog`).
EXIT_DEAF: Final = 3
#: Half the slots were stuck in tasks beyond their hard time limits (see `stuck`).
EXIT_STUCK: Final = 4
#: How long a process that imports the app anew may take until it can run a task, unless a setting says otherwise.
SPAWNED_S: Final = 60.0
#: The broker was lost, and the settings allow no (more) tries to reach it: the command line's word for such a server.
EXIT_LOST: Final = 69
#: A process that was to end at once waits so long for threads that tasks have left.
THREADS_S: Final = 0.5
#: Between two tries to reach a broker that has yet to be reached.
START_PAUSE_S: Final = 2.0
#: The first so many of these tries are told, then each of so many.
TOLD_TRIES: Final = 15
#: So often a worker tells monitors that it lives.
HEARTBEAT_S: Final = 2.0
#: More unexpected errors than this within this time end the worker: something is wrong that a new link does not mend.
#: A broker's own may be over at the next link, or the one after (B25).
MAX_SURPRISES: Final = 5
SURPRISE_PERIOD_S: Final = 60.0
#: After the second, third … of them the link is made anew after a pause that doubles, up to this.
SURPRISE_PAUSE_S: Final = 0.2
LONGEST_SURPRISE_PAUSE_S: Final = 30.0

_log = logging.getLogger("celeriac.worker")


class Worker:
    """A worker of one app.

    Args:
        hostname: Node name, in Celery's forms (`w1@%h`).
        queues, exclude_queues: Names; default: all declared queues.
        include: Modules to import before starting.
        autoscale: `"10,2"`: between 2 and 10 slots, as many as are needed; `"10"`: from none but one.
        concurrency: Slots; default: the processors this process may use.
        pool: Name of a pool plugin.
        purge: Drop all waiting messages first.
        statedb: File in which revocations outlive the worker, where the app has no shared state.
        beat: Send periodic tasks too, from a thread; with `scheduler` and `schedule_filename` as for `beat.Service`.
        loglevel, logformat, logfile: For the lines about tasks; without a level there are none.
        ready_file, health_port: See `health`; instead of `worker_ready_file` and `worker_health_port`.
        mingle, gossip: See `siblings`; instead of `worker_mingle` and `worker_gossip`.
        on_ready: Called with the worker when it consumes.
        app_name: What the command line found the app by (`-A`; empty: there was none), for processes that do it again.
            None: they import it from the module in which it is found.
        ends_process: The process ends with the worker: then HUP restarts it, USR1 shows where it is, signals that
            come after its end are ignored, and systemd is told what happens, if it wants to know (`utils.systemd`).

    Attributes:
        restarts: It ended because of a HUP, and whoever ran it should run it anew.
    """

    def __init__(
        self,
        app: Any,
        *,
        hostname: str | None = None,
        queues: Sequence[str] = (),
        exclude_queues: Sequence[str] = (),
        include: Sequence[str] = (),
        concurrency: int | None = None,
        autoscale: str | Sequence[int] | None = None,
        pool: str | None = None,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        time_limit: float | None = None,
        soft_time_limit: float | None = None,
        prefetch_multiplier: int | None = None,
        disable_prefetch: bool = False,
        purge: bool = False,
        statedb: str | None = None,
        beat: bool = False,
        scheduler: Any = None,
        schedule_filename: str | None = None,
        loglevel: int | str | None = None,
        logformat: str | None = None,
        logfile: str | None = None,
        no_color: bool = False,
        ready_file: str | None = None,
        health_port: int | None = None,
        task_events: bool | None = None,
        without_heartbeat: bool = False,
        heartbeat_interval: float | None = None,
        mingle: bool | None = None,
        gossip: bool | None = None,
        on_ready: Callable[[Worker], Any] | None = None,
        app_name: str | None = None,
        ends_process: bool = False,
        **extra: Any,
    ) -> None:
        self.app = app
        conf = app.conf
        self.hostname = default_nodename(hostname)
        # The options as given, for receivers and for steps of the program's own.
        self.options: dict[str, Any] = {
            "hostname": hostname, "queues": queues, "exclude_queues": exclude_queues, "concurrency": concurrency,
            "pool": pool, "loglevel": loglevel, "logfile": logfile, **extra,
        }  # fmt: skip
        # Before any setting is read: receivers configure this very worker.
        signals.celeryd_init.send(sender=self.hostname, instance=self, conf=conf, options=self.options)
        self._queue_names = _choose_queues(app, queues, exclude_queues)
        self._include = include
        self._bounds = parse_autoscale(autoscale)
        self.concurrency = self._bounds[1] if self._bounds else concurrency or _slots(conf["worker_concurrency"])
        self.pool_name = pool or conf["worker_pool"]
        self._max_tasks = max_tasks_per_child or conf["worker_max_tasks_per_child"] or None  # 0: never, as None
        self._max_memory = max_memory_per_child or conf["worker_max_memory_per_child"] or None
        self._hard_s = time_limit or conf["task_time_limit"]
        self._soft_s = soft_time_limit or conf["task_soft_time_limit"]
        self._multiplier = (
            prefetch_multiplier if prefetch_multiplier is not None else conf["worker_prefetch_multiplier"]
        )
        if disable_prefetch or conf["worker_disable_prefetch"]:
            self._multiplier = 1  # what is held, runs
        self._purge = purge
        self._state_db = statedb
        self._watch: RevocationWatch | None = None
        self._beat_words = {"scheduler_cls": scheduler, "schedule_filename": schedule_filename} if beat else None
        self._beat: EmbeddedService | None = None
        self._app_name = app_name
        self._log_words = LogWords(loglevel, logfile, logformat, not no_color)
        self._log_format: Literal["console", "json"] = "json" if logformat == "json" else "console"
        self._task_log = TaskLog(
            self._log_format,
            logging.CRITICAL + 1 if loglevel is None else loglevel,
            open_stream(logfile) if logfile else sys.stderr,
            False if no_color else conf["worker_log_color"],
            Formats.of(conf),
        )
        self._ready_file = ready_file or conf["worker_ready_file"]
        self._health_port = conf["worker_health_port"] if health_port is None else health_port
        self._task_events = bool(conf["worker_send_task_events"] if task_events is None else task_events)
        self._heartbeat_s = None if without_heartbeat else float(heartbeat_interval or HEARTBEAT_S)
        self._mingles = bool(conf["worker_mingle"] if mingle is None else mingle) and not extra.get("without_mingle")
        self._gossips = bool(conf["worker_gossip"] if gossip is None else gossip) and not extra.get("without_gossip")
        self.gossip: Gossip | None = None
        self._on_ready = on_ready
        self._ends_process = ends_process
        self._manager = ServiceManager() if ends_process else ServiceManager({})
        self._pulse: Pulse | None = None
        self._signal_name = ""
        self._handlers: dict[int, Any] = {}  # what signals had before ours, by number
        self.restarts = False
        self._asked = 0  # how often it was asked to stop; only ever grows (D1)
        self._guard: EndGuard | None = None
        self._sleeper = Sleeper()
        self.transport: Transport
        self.pool: Pool
        self.link: Link
        self.loop: Loop
        self._health: Health
        self._watchdog: Watchdog | None = None
        self._door: Door | None = None
        self._stuck: StuckSlots | None = None
        self._stand_in: StandIn | None = None
        self._gave_up = EXIT_OK  # or why it stopped by itself
        self.remote: Remote | None = None
        self.autoscaler: Any = None
        self.broker_info = ""
        self._extensions: list[PluginInfo] = []
        self._surprises: list[float] = []
        self._crash: Exception | None = None  # what could not be gone on after
        self._broadcasts: Broadcasts | None = None
        self._steps = Blueprint((), self, {})
        self._consumer_kind = Consumer
        self._consumer: Consumer | None = None
        self.timer = Timer(on_exit=self.stop)

    # -- running --------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until told to stop; returns the exit code.

        Raises:
            ImproperlyConfigured, OperationalError: It could not start; nothing was consumed.
        """
        self._manager.live()  # after a restart by HUP the process is the same, and its time runs on
        self._guard = self._make_guard()
        if self._asked:
            self._guard.begin()
        try:
            if self._prepare():
                self._handle_signals()  # once more: receivers may have had handlers of their own meanwhile
                self._start()
                code = self._work()
            else:
                code = self._end_unbegun()
        except Exception as exc:
            self._abort()
            if self._crash is not None:  # what is wrong when it ends is so because of that
                self._raise_crash(self._crash)
            blamed = self.app.kernel.blame(exc, "while the worker started or ended")
            if blamed is exc:
                raise
            raise blamed from exc
        except BaseException:
            self._abort()
            raise
        finally:
            self._end_watch()
            if self._pulse is not None:
                self._pulse.stop()
            if self._door is not None:
                self._door.close()
            if self._stand_in is not None:
                self._stand_in.stop()
            (_ignore if self._ends_process else _restore)(self._handlers)
            self._sleeper.close()
            self._guard.over()
        if self._ends_process and (code != EXIT_OK or self._asked > 1):
            _end_without_threads(code)
        if self._crash is not None:
            self._raise_crash(self._crash)
        return code

    def _raise_crash(self, crash: Exception) -> NoReturn:
        blamed = self.app.kernel.blame(crash, "while the worker ran")
        raise blamed from (crash.__cause__ if blamed is crash else crash)

    def stop(self) -> None:
        """From any thread: stop warmly; asked again, coldly."""
        self._asked += 1
        self._watch_end()
        self._sleeper.wake()

    def _make_guard(self) -> EndGuard:
        return EndGuard(
            threading.get_ident(),
            self.app.kernel,
            turns=lambda: self.loop.turns if hasattr(self, "loop") else 0,
            is_cold=lambda: self._asked > 1,
            is_excused=lambda: hasattr(self, "loop") and not self._runs_elsewhere and len(self.loop.flights) > 0,
            # Its broker may be away, and a try to reach it takes its time.
            warm_s=WARM_S + float(self.app.conf["broker_connection_timeout"] or 0),
            end=partial(_end_at_once, EXIT_FORCED) if self._ends_process else None,
        )

    def _watch_end(self) -> None:
        """It was told to stop: from now on nothing may hold it up for ever."""
        if self._guard is not None:
            self._guard.begin()

    def _where(self) -> str:
        place = None if self._guard is None else find_place(self._guard.thread_id, self.app.kernel)
        return "" if place is None else place.text

    def _is_told_to_end(self) -> bool:
        return self._asked > 0

    def _prepare(self) -> bool:
        """Make sure that it can begin; False if it was told to end before it could."""
        app = self.app
        app.set_current()
        app.finalize()
        for name in self._include:
            __import__(name)
        app.loader.import_default_modules()
        app.codec.check_accept()
        app.codec.check_chosen(app.conf)
        self._check_rates()
        self._consumer_kind = consumer_class(app)
        agent_class(app)  # an error of either shows before anything is begun
        rdb.install_handler()
        self._extensions = app.kernel.extensions()
        for info in self._extensions:
            app.kernel.load(info)
        self._tell_extensions("celeriac_worker_starting")
        # First what may be wrong, then what costs: plugins, broker, results, and only then processes.
        self.transport = app.make_transport(app.conf["broker_read_url"])
        self._handle_signals()
        if not self._reach_broker():
            return False
        if app.backend.plugin is not None:
            app.backend.plugin.ping(float(app.conf["broker_connection_timeout"] or 4))
        signals.worker_init.send(sender=self)
        app.loader.on_worker_init()
        self._settle_queues()
        self._steps = Blueprint(app.steps["worker"], self, self.options)
        return True

    def _settle_queues(self) -> None:
        """What is consumed: as chosen by the options, then as receivers of `celeryd_after_setup` add and drop."""
        app, options = self.app, self.options
        with app.router.choice_for(options["queues"], options["exclude_queues"]):
            if app.conf["worker_direct"]:
                app.amqp.queues.select_add(worker_direct(self.hostname))
            signals.celeryd_after_setup.send(sender=self.hostname, instance=self, conf=app.conf)
            self._queue_names = app.router.consumed()

    def _reach_broker(self) -> bool:
        """Learn its name and version. One that cannot be reached is waited for, if the app has patience at the start;
        False if the worker was told to end meanwhile."""
        patience, timeout_s = patience_of(self.app.conf), float(self.app.conf["broker_connection_timeout"] or 4)
        began = time.monotonic()
        for attempt in itertools.count(1):
            try:
                self.broker_info = self.transport.ping(timeout_s)
                return True
            except TransportUnreachable as exc:
                if self._is_told_to_end():
                    return False
                waited_s = time.monotonic() - began
                over = patience.longest_s is not None and waited_s >= patience.longest_s
                if not patience.at_start or over:
                    raise
                level = logging.WARNING if attempt <= TOLD_TRIES or attempt % TOLD_TRIES == 0 else logging.DEBUG
                _log.log(
                    level, "Waiting for the broker, trying again in %g s (try %d): %s", START_PAUSE_S, attempt, exc
                )
                self._manager.starting(f"Waiting for the broker (try {attempt}).", 2 * timeout_s + 10)
                self._manager.live()
                self._sleeper.sleep(START_PAUSE_S)
                if self._is_told_to_end():
                    return False
        raise AssertionError("unreachable")

    def _end_unbegun(self) -> int:
        """It was told to end while it waited for its broker: say so to all who would hear of its end."""
        signals.worker_shutting_down.send(
            sender=self.hostname, sig=self._signal_name, how="cold" if self._asked > 1 else "warm", exitcode=EXIT_OK
        )
        (self._manager.reloading if self.restarts else self._manager.stopping)("Stopping.")
        self.transport.close()
        self.timer.stop()
        self.app.loader.shutdown_worker()
        signals.worker_shutdown.send(sender=self)
        self._tell_extensions("celeriac_worker_stopped")
        _log.info("Stopped before the broker could be reached.")
        return EXIT_OK

    def _start(self) -> None:
        app = self.app
        program = TaskProgram(
            app, self.transport.unpack, self.hostname, detail=self._task_log.info_on, forked=self.transport.after_fork
        )
        options = PoolOptions(
            slots=self.concurrency,
            poller=self._sleeper,
            max_tasks_per_child=self._max_tasks,
            max_memory_per_child_kib=self._max_memory,
            start_timeout_s=float(app.conf["worker_proc_alive_timeout"] or 10),
            node=self.hostname,
        )
        if app.conf["worker_pool_start_method"] == "spawn":
            options = structs.replace(options, recipe=self._write_recipe)
            if not app.conf.value_set_for("worker_proc_alive_timeout"):
                options = structs.replace(options, start_timeout_s=SPAWNED_S)
        self.pool = app.kernel.make_pool(self.pool_name, program, options)
        self._check_limits()
        # Children are forked before anything is connected, so that they inherit no socket.
        self.transport.after_fork()
        app.close()
        signals.worker_before_create_process.send(sender=self)
        self._manager.live()
        if not self._runs_elsewhere:
            # As with Celery's solo; what receivers make in each process that runs tasks is wanted in this one.
            signals.worker_process_init.send(sender=self.hostname)
        self.pool.start()
        self._steps.start()
        self._stand_in = make_stand_in(self.pool.abilities, float(app.conf["worker_stand_in_limit"] or 0))
        self.link = Link(
            self.transport,
            app.router,
            app.backend.plugin,
            owner=f"{self.hostname}/{uuid()}",
            queues=self._open_queues(),
            poller=self._sleeper,
            joiner=Joiner(app) if app.backend.plugin is not None else None,
            make_spool=lambda: Spool(app.conf["worker_spool_results"], app.conf["worker_spool_bytes"]),
            stand_in=self._stand_in,
            stores=Stores(app) if app.has_own_stores else None,
            patience=patience_of(app.conf),
            give_up=partial(self._give_up, EXIT_LOST),
            check=partial(app.kernel.check_consumer, self.transport),
            check_received=partial(app.kernel.check_returned, self.transport, "receive", Delivery),
            unsent=partial(after_no_sending, app),
        )
        state_db = self._state_db or app.conf["worker_state_db"]
        self.loop = Loop(
            app,
            self.link,
            self.transport,
            self.pool,
            self._sleeper,
            node=self.hostname,
            window=Window(self.pool.slots, self._multiplier),  # solo has one, whatever -c says
            log=self._task_log,
            hard_s=self._hard_s,
            soft_s=self._soft_s,
            revoked=Revoked(float(app.conf["task_revoke_expires"]), state_db),
        )
        self._watch_revocations()
        if app.shared_state is not None and not app.conf["worker_disable_rate_limits"]:
            self.loop.rates = ClusterRates(
                app.shared_state, self.transport.unpack, lambda: app.codec, self._sleeper.wake, self.loop.promised
            )
        self._make_autoscaler()
        self._make_remote()
        self._meet_siblings()
        if self._purge:
            for name in self._queue_names:
                if name not in app.router.broadcasts:
                    self.transport.purge(name)
        self._make_watchdog()
        self.loop.open()
        assert self._watchdog is not None
        self._watchdog.start()
        if self._door is not None:
            self._door.start()
        if self._manager.listens:
            self._pulse = Pulse(self._manager, self._health.stalled_s, self._describe)
            self._pulse.start()

    def _write_recipe(self) -> Recipe:
        return write_recipe(
            self.app,
            self._app_name,
            include=self._include,
            log=self._log_words,
            node=self.hostname,
            detail=self._task_log.info_on,
        )

    def _make_watchdog(self) -> None:
        """Make what says whether this worker consumes, and what sees to it that it does."""
        conf = self.app.conf
        health = self._health = Health(
            self.loop, self.link, runs_elsewhere=self._runs_elsewhere, is_told_to_end=self._is_told_to_end
        )
        if "stuck" in self.pool.abilities:
            recycle = partial(self._give_up, EXIT_STUCK) if conf["worker_recycle_stuck"] else None
            end = partial(os._exit, EXIT_STUCK) if self._ends_process else None
            self._stuck = StuckSlots(self.loop, self.pool, self.pool_name, recycle, end)
        self._watchdog = Watchdog(
            self.loop,
            self.link,
            self.transport,
            health,
            patience_s=float(conf["worker_watchdog"] or 0),
            give_up=partial(self._give_up, EXIT_DEAF),
            ready_file=ReadyFile(self._ready_file) if self._ready_file else None,
            stuck=self._stuck,
            where=self._where,
        )
        if self._health_port is not None:
            self._door = Door(health, conf["worker_health_host"], int(self._health_port), self.hostname)
            _log.info("Health probe: http://%s:%d/ready", conf["worker_health_host"], self._door.port)

    @property
    def _runs_elsewhere(self) -> bool:
        """A pool that can do nothing with its tasks but tell of them, solo, runs them in our own thread."""
        return bool(self.pool.abilities - {"stuck"})

    def _describe(self) -> str:
        """What it does now, in a line for `systemctl status`."""
        count, trouble = len(self.loop.flights), self._health.trouble()
        if self.loop.is_stopping:
            return f"Stopping: {count} in hand."
        if trouble:
            return f"Not consuming: {trouble}."
        return f"Consuming {', '.join(self.queue_names)}: {count} in hand, {self.loop.endings.finished} finished."

    def _abort(self) -> None:
        """It could not begin, or cannot go on: end whatever was begun, for the process may live on. What it holds goes
        back."""
        ends: list[tuple[str, Callable[[], Any]]] = []
        if hasattr(self, "pool"):
            ends.append(("the pool", lambda: self.pool.stop(grace_s=0.0)))
        if hasattr(self, "link"):
            ends.append(("the link", lambda: self.link.close(0.0)))
        if hasattr(self, "loop") and self.loop.rates is not None:
            ends.append(("rate limits", self.loop.rates.stop))
        for part in (self._beat, self._watch, self.gossip, self.remote, self._broadcasts):
            if part is not None:
                ends.append((type(part).__name__, part.stop))
        if hasattr(self, "transport"):
            ends.append(("the broker", self.transport.close))
        ends.append(("the timer", self.timer.stop))
        for name, end in ends:
            try:
                end()
            except Exception as exc:  # the others are to end, too, and what has led here is raised
                _log.debug("%s did not end in good order: %s", name, exc)

    def _end_watch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.stop()

    def _give_up(self, code: int) -> None:
        """Stop warmly, and end with this code; nothing, if it stops already."""
        if not self._asked:
            self._gave_up = code
            self.stop()

    def _watch_revocations(self) -> None:
        """Know what is revoked before the first message comes, and look on."""
        state = self.app.shared_state
        if state is None:
            return
        self._watch = RevocationWatch(state, self.loop.learn_revoked)
        try:
            self._watch.look()
        except CeleriacError as exc:
            _log.warning("Cannot look for revoked tasks yet: %s", exc)
        self._watch.start()

    def _open_queues(self) -> list[QueueSpec]:
        """The queues to consume; for those that are broadcast to, this worker's own."""
        app = self.app
        heard = [name for name in self._queue_names if name in app.router.broadcasts]
        queues: list[QueueSpec] = app.router.select(name for name in self._queue_names if name not in heard)
        for queue in queues:
            if app.router.bindings.get(queue.name):
                app.transport.declare(app.router.declarations(queue.name))
        if heard:
            transport = app.make_transport(app.conf["broker_read_url"])
            app.kernel.require(transport, ["fanout"], because=f"the queue {heard[0]} is a Broadcast")
            self._broadcasts = Broadcasts(transport, app.router.select(heard))
            self._broadcasts.open()
            self._broadcasts.start()
            queues += self._broadcasts.queues
        return queues

    def _make_autoscaler(self) -> None:
        if self._bounds is None:
            return
        if "resize" not in self.pool.abilities:
            raise ImproperlyConfigured(
                f"--autoscale: the pool {self.pool_name!r} cannot grow or shrink while it runs; prefork and threads can"
            )
        module, _, name = str(self.app.conf["worker_autoscaler"]).replace(":", ".").rpartition(".")
        self.autoscaler = self.loop.scaler = getattr(import_module(module), name)(self, *self._bounds)

    def _make_remote(self) -> None:
        """Remote control and events, where the broker can broadcast."""
        listens = bool(self.app.conf["worker_enable_remote_control"])
        if "fanout" not in self.transport.abilities:
            if self._task_events:
                require_fanout(self.transport, "sending task events (-E)")
            if listens:
                _log.info("This broker cannot broadcast: no remote control and no events.")
            return
        if not listens and self._heartbeat_s is None and not self._task_events:
            return
        state = WorkerState(self)
        self.loop.errands = errands = Errands(
            lambda request: remote.answer(request, state.perform(request)), self._sleeper.wake
        )
        flights, endings = self.loop.flights, self.loop.endings
        self.remote = remote = Remote(
            self.app,
            self.transport,
            self.hostname,
            errands=errands,
            counts=lambda: (len(flights), endings.finished),
            heartbeat_s=self._heartbeat_s,
            listens=listens,
        )
        self.tell_events(self._task_events)

    def _meet_siblings(self) -> None:
        """Ask them what they know, and listen to them from now on, if that is wanted."""
        if self._mingles or self._gossips:
            require_fanout(self.transport, "mingle and gossip")
        if self._mingles:
            mingle_with_all(self.app, self.hostname, self.loop.revoked)
        if self._gossips:
            self.gossip = Gossip(self.app, self.hostname)

    def _check_rates(self) -> None:
        """What tasks say of their rates can be done."""
        tasks = list(self.app.tasks.values())
        for task in tasks:
            trouble = trouble_with(task)
            if trouble:
                raise ImproperlyConfigured(trouble)
        if not self.app.conf["worker_disable_rate_limits"]:
            limited = cluster_wide(tasks)
            if limited and self.app.shared_state is None:
                raise ImproperlyConfigured(f"{limited[0]}: {NO_STATE}")

    def _check_limits(self) -> None:
        """Say at the start what this pool cannot do."""
        if self.app.conf["worker_pool_start_method"] == "spawn" and "spawn" not in self.pool.abilities:
            _log.warning(
                "worker_pool_start_method is 'spawn', but the pool %r makes no fresh processes; prefork does.",
                self.pool_name,
            )
        tasks = list(self.app.tasks.regular().values())
        if "coroutines" in self.pool.abilities:
            tasks = [task for task in tasks if not inspect.iscoroutinefunction(task.run)]
        wanted = {
            "hard_limit": any((self._hard_s if task.time_limit is None else task.time_limit) for task in tasks),
            "soft_limit": any(
                (self._soft_s if task.soft_time_limit is None else task.soft_time_limit) for task in tasks
            ),
        }
        missing = [name.replace("_", " ") for name, want in wanted.items() if want and name not in self.pool.abilities]
        if missing:
            _log.warning(
                "The pool %r cannot enforce the time limits that are set (%s)%s; prefork can.",
                self.pool_name,
                ", ".join(missing),
                " for tasks that are no coroutines" if "coroutines" in self.pool.abilities else "",
            )

    def _work(self) -> int:
        loop, pool = self.loop, self.pool
        if self.remote is not None:
            self.remote.begin()
        if self._on_ready is not None:
            self._on_ready(self)
        self._manager.ready(self._describe())
        if self._beat_words is not None:  # when the first processes are forked
            self._beat = EmbeddedService(self.app, **self._beat_words)
            self._beat.start()
        consumer = self._consumer = self._consumer_kind(
            app=self.app, controller=self, hostname=self.hostname, pool=pool, timer=self.timer,
            worker_options=self.options,
        )  # fmt: skip
        consumer.start()
        if self.gossip is not None:  # last, so that steps hear of everybody
            self.gossip.start()
        signals.worker_ready.send(sender=self)
        self._tell_extensions("celeriac_worker_ready")
        try:
            while not self._asked:
                self._turn()
        except WorkerTerminate:
            self._asked += 2
        except (WorkerShutdown, SystemExit, KeyboardInterrupt):
            self._asked += 1
        except Exception as exc:
            self._crash = exc
            self._asked += 3  # nothing is waited for
        self._watch_end()
        how = "cold" if self._asked > 1 else "warm"
        signals.worker_shutting_down.send(sender=self.hostname, sig=self._signal_name, how=how, exitcode=EXIT_OK)
        restarts = self.restarts
        (self._manager.reloading if restarts else self._manager.stopping)("Stopping.")
        consumer.by_force = how == "cold"
        consumer.stop()
        _log.info("Stopping: running tasks finish, what no slot has begun is given back.")
        if self._beat is not None:
            self._beat.stop()
        if self._watch is not None:
            self._watch.stop()
        self._end_watch()  # at once, for it is not ready any longer
        ended = wind_down(
            loop,
            pool,
            self._last_turn,
            lambda: self._asked,
            grace_s=self.app.conf["worker_shutdown_grace"],
            soft_s=self.app.conf["worker_soft_shutdown_timeout"] or 0.0,
            soft_when_idle=bool(self.app.conf["worker_enable_soft_shutdown_on_idle"]),
        )
        if self.gossip is not None:
            self.gossip.stop()
        if restarts and not self.restarts:  # it was told otherwise meanwhile
            self._manager.stopping("Stopping.")
        if self.remote is not None:
            self.remote.stop()
        if self._broadcasts is not None:
            self._broadcasts.stop()
        self.transport.close()
        self._steps.stop(by_force=bool(ended.forced))
        self.timer.stop()
        self.app.loader.shutdown_worker()
        if "processes" not in pool.abilities:
            with contextlib.suppress(OperationalError):  # it is ending anyway
                self.app.close()
        signals.worker_shutdown.send(sender=self)
        self._tell_extensions("celeriac_worker_stopped")
        _log.info("Stopped: %d finished, %d given back, %d given up while they ran.", *ended)
        if self._gave_up:
            return self._gave_up
        return EXIT_FORCED if ended.forced else EXIT_OK

    def _last_turn(self) -> None:
        """A turn while it ends, which nothing that is raised keeps it from. Stuck slots, if it ends for them, are not
        waited for."""
        try:
            if self._gave_up == EXIT_STUCK:
                assert self._stuck is not None
                self._stuck.give_up()
            self._turn()
        except WorkerTerminate:
            self._asked = max(2, self._asked)
        except (WorkerShutdown, SystemExit, KeyboardInterrupt):
            _log.debug("told to end while it ends")
        except Exception as exc:
            self._crash = exc
            self._asked = max(3, self._asked)

    def _turn(self) -> None:
        """One turn of the loop. What nobody foresaw costs a new link, not the worker; but not for ever."""
        try:
            self.loop.turn()
        except PoolBroken:
            raise
        except Exception as exc:
            now = time.monotonic()
            self._surprises = [moment for moment in self._surprises if now - moment < SURPRISE_PERIOD_S] + [now]
            culprit = self.app.kernel.culprit(exc)
            passes = culprit is not None and culprit.kind == "broker" and self.link.consumer is not None
            if len(self._surprises) > MAX_SURPRISES and not passes:
                raise
            if isinstance(exc, PluginBroken):
                _log.error("%s", exc, exc_info=True)
            else:
                who = f"plugin {culprit}" if culprit else "the worker"
                _log.exception("Unexpected error in %s: %s", who, type(exc).__name__)
            pause_s = min(LONGEST_SURPRISE_PAUSE_S, SURPRISE_PAUSE_S * 2 ** (len(self._surprises) - 1))
            self.link.lose(exc, by_choice=True, pause_s=pause_s)

    def _tell_extensions(self, hook: str) -> None:
        if self._extensions:
            self.app.kernel.notify(hook, worker=self)

    # -- signals --------------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return

        def warm(signum: int, frame: Any) -> None:
            self.restarts = False
            self._asked += 1
            self._watch_end()
            self._say(signum)

        def cold(signum: int, frame: Any) -> None:
            self.restarts = False
            self._asked = max(2, self._asked + 1)
            self._watch_end()
            self._say(signum)

        def anew(signum: int, frame: Any) -> None:
            first = self._asked == 0
            warm(signum, frame)
            self.restarts = first  # until told otherwise by another signal

        remapped = os.environ.get("REMAP_SIGTERM") == "SIGQUIT"
        wanted = {signal.SIGINT: warm, signal.SIGTERM: cold if remapped else warm, signal.SIGQUIT: cold}
        # A HUP from a terminal means that it was closed; one to a service means: begin anew.
        wanted[signal.SIGHUP] = warm if self._ends_process and _is_terminal() else anew
        if not self._ends_process:
            del wanted[signal.SIGHUP]  # whoever embeds a worker restarts it himself
        for signum, handler in wanted.items():
            before = signal.signal(signum, handler)
            self._handlers.setdefault(signum, before)
        if self._ends_process:
            with contextlib.suppress(OSError, ValueError):  # standard error is closed or no file
                faulthandler.register(signal.SIGUSR1, all_threads=True)
        signal.set_wakeup_fd(self._sleeper.wakeup_fd, warn_on_full_buffer=False)

    def _say(self, signum: int) -> None:
        self._signal_name = self._signal_name or signal.Signals(signum).name
        can_give_up = "pool" not in vars(self) or self._runs_elsewhere
        if self._asked == 1:
            how = f"finishing running tasks ({'once more to give' if can_give_up else 'this pool cannot give'} them up)"
        else:
            how = "giving up running tasks" if can_give_up else "this pool cannot give up the task that runs"
        if self._log_format == "json":
            return  # a stream of objects stays one; the log says it in its own words
        with contextlib.suppress(OSError):  # a closed terminal is no reason to fail
            os.write(2, f"\nworker: {signal.Signals(signum).name}: {how}\n".encode())

    # -- for remote control ---------------------------------------------------------------------------------

    def tell_events(self, wanted: bool) -> bool:
        """Tell monitors about tasks, or no more; False if it is so already."""
        remote = self.remote
        if remote is None or wanted == (remote.feed is not None):
            return False
        remote.feed = Feed(self.app.clock, self.hostname, self.transport.unpack) if wanted else None
        self.loop.tell(remote.feed)
        return True

    def resize_pool(self, by: int) -> dict[str, str] | None:
        """Give the pool more slots, or fewer; an error as a reply, if that cannot be."""
        if self.autoscaler is not None:
            return {"error": "pool_grow and pool_shrink are not for a worker that scales itself: use autoscale"}
        if "resize" not in self.pool.abilities:
            return {"error": f"the pool {self.pool_name!r} cannot grow or shrink while it runs"}
        self.loop.resize(max(1, self.pool.slots + by))
        return None

    def consume_from(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str | None = None,
        routing_key: str | None = None,
        **options: Any,
    ) -> bool:
        """Consume from this queue too, in the worker's thread; False if it is consumed already."""
        router = self.app.router
        if any(spec.name == queue for spec in self.link.queues):
            return False
        if exchange:
            arguments = dict(options.get("queue_arguments") or {})
            router.queues[queue] = QueueSpec(
                queue, exchange, exchange_type or "direct", routing_key or queue,
                bool(options.get("durable", True)), bool(options.get("auto_delete", False)), arguments=arguments,
            )  # fmt: skip
        self.link.subscribe(router.spec(queue))
        return True

    def restart_pool(self) -> dict[str, str] | None:
        """Replace the pool's processes when they have finished what they run; an error as a reply, likewise."""
        if not {"resize", "processes"} <= self.pool.abilities:
            return {"error": f"the pool {self.pool_name!r} has no processes that could be replaced"}
        slots = self.pool.slots
        self.pool.resize(0)
        self.loop.resize(slots)
        return None

    def extra_stats(self) -> dict[str, Any]:
        """What `inspect stats` shows besides."""
        remote = self.remote
        extra: dict[str, Any] = {**self._steps.info(), **({} if self._consumer is None else self._consumer.info())}
        if self.autoscaler is not None:
            extra["autoscaler"] = self.autoscaler.info()
        extra.update(describe(self._stand_in))
        if remote is not None:
            feed = remote.feed
            extra["events"] = {"enabled": feed is not None, "dropped": 0 if feed is None else feed.dropped}
            extra["remote_control"] = {"malformed": remote.malformed, "dropped": remote.errands.dropped}
        if self.loop.rates is not None and self.loop.rates.ident is not None:
            extra["cluster_rates"] = self.loop.rates.info()
        return extra

    @property
    def max_tasks_per_child(self) -> int | None:
        """After so many tasks a pool process is replaced."""
        return self._max_tasks

    @property
    def time_limits(self) -> tuple[float, float]:
        """Soft and hard, in seconds; 0 for none."""
        return self._soft_s or 0.0, self._hard_s or 0.0

    @property
    def active_requests(self) -> list[Request]:
        """What slots run now, for steps. From any thread."""
        if not hasattr(self, "loop"):
            return []  # it has yet to start
        return [make_request(Request, flight, self.loop.endings) for flight in self.loop.running()]

    # -- for extensions -------------------------------------------------------------------------------------

    def listen(self, listener: RunListener) -> None:
        """Let it hear of the runs that end from now on; once the worker is ready."""
        self.loop.listeners.append(listener)

    def in_flight(self) -> int:
        """How many deliveries the pool has now. From any thread."""
        return len(self.loop.flights)

    def given_back(self) -> int:
        """How many deliveries went back to their queue so far. From any thread."""
        return self.loop.endings.given_back

    # -- for the start-up page ------------------------------------------------------------------------------

    @property
    def tells_events(self) -> bool:
        """Monitors are told what happens to tasks."""
        return self.remote is not None and self.remote.feed is not None

    @property
    def queue_names(self) -> list[str]:
        """What it consumes."""
        return [spec.name for spec in self.link.queues] if hasattr(self, "link") else list(self._queue_names)

    def plugins(self) -> list[PluginInfo]:
        """The plugins in use."""
        return self.app.kernel.loaded()  # type: ignore[no-any-return]


#: As Celery calls it.
WorkController = Worker


def _ignore(handlers: dict[int, Any]) -> None:
    """The worker has ended and the process is about to: a late signal must not make it look killed."""
    if handlers:
        signal.set_wakeup_fd(-1)
    for signum in handlers:
        signal.signal(signum, signal.SIG_IGN)


def _end_at_once(code: int) -> None:
    """From another thread than the worker's, which cannot end the process any more."""
    os._exit(code)


def _end_without_threads(code: int) -> None:
    """Once this process ends, end it soon: Python would wait for the threads that tasks have left, those of
    `asyncio.to_thread` and of any executor, until they have done their work."""

    is_ending = threading.Event()

    def end() -> None:
        is_ending.wait()
        time.sleep(THREADS_S)
        _log.warning("Threads that tasks have left still run: the process ends without them.")
        os._exit(code)

    # Who has executors wait registers that here, too; what is registered last is called first.
    register: Callable[[Callable[[], None]], None] | None = getattr(threading, "_register_atexit", None)
    if register is not None:
        register(is_ending.set)
        threading.Thread(target=end, name="celeriac-end", daemon=True).start()


def _is_terminal() -> bool:
    try:
        return sys.stdin.isatty()
    except (AttributeError, ValueError):
        return False  # there is none, or it is closed


def _restore(handlers: dict[int, Any]) -> None:
    if handlers:
        signal.set_wakeup_fd(-1)
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def _choose_queues(app: Any, queues: Sequence[str], exclude: Sequence[str]) -> list[str]:
    with app.router.choice_for(queues, exclude):
        chosen: list[str] = app.router.consumed()
    if not chosen:
        names = list(dict.fromkeys(queues)) or list(app.router.queues)
        raise ImproperlyConfigured(f"nothing to consume: of the queues {', '.join(names)} all are excluded")
    return chosen


def parse_autoscale(text: str | Sequence[int] | None) -> tuple[int, int] | None:
    """Most and least slots of `"10,2"`, `"10"` (least 1) or a pair; None for none.

    Raises:
        ImproperlyConfigured: They make no sense.
    """
    if text is None or text == "":
        return None
    words = text.split(",") if isinstance(text, str) else text
    try:
        most, least = [int(word) for word in words] if len(words) == 2 else (int(words[0]), 1)
    except ValueError:
        most, least = 0, 0
    if not 1 <= least <= most:
        raise ImproperlyConfigured(f"--autoscale: {text!r} is not like 10,2 (at most 10 slots, at least 2)")
    return most, least


def _slots(setting: Any) -> int:
    if not setting or setting == "auto":  # 0, too, as in Celery
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(setting)
