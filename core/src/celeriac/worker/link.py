"""The worker's link to its broker: opened, lost, opened again.

Each opening is an epoch with a consumer, a settler and a lease of its own. What a lost epoch had received comes again
from the broker, so nothing of it may be settled by a later one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from celeriac.exceptions import (
    ImproperlyConfigured,
    OperationalError,
    PublishRejected,
    QueueNotFound,
    TransportLost,
)
from celeriac.execution.followup import Following
from celeriac.messaging.notices import NOTICE
from celeriac.messaging.producer import broadcast
from celeriac.messaging.routes import REMEMBERED, Router
from celeriac.resultstore import Stores
from celeriac.spec.backend import ResultBackend
from celeriac.spec.data import (
    PUBLISH_TRY_HEADER,
    ChordWork,
    Delivery,
    Payload,
    QueueSpec,
    Settlement,
    StoredResult,
    reply_queue_spec,
)
from celeriac.utils.bounded import Bounded
from celeriac.worker.clock import SYSTEM, Clock
from celeriac.worker.joins import Join, Joiner
from celeriac.worker.patience import ENDLESS, Patience
from celeriac.worker.settle import Settler, Unsent
from celeriac.worker.spool import Ending, Spool

if TYPE_CHECKING:
    from celeriac.spec.transport import Consumer, Poller, Transport
    from celeriac.worker.flights import Flight
    from celeriac.worker.standin import StandIn

RENEW_S: Final = 5.0
#: Between two tries to open: with the try itself, less than the five seconds after which we must be back (B27).
LONGEST_PAUSE_S: Final = 2.0
#: How long the broker may take, at the end, for what would be lost otherwise.
LAST_FLUSH_S: Final = 1.0
#: So many of the messages that could not be sent before the end are named.
NAMED_UNSENT: Final = 20

_log = logging.getLogger("celeriac.worker")


class Renewer(threading.Thread):
    """Renews a consumer's leases every few seconds, whatever the loop is doing."""

    def __init__(self, consumer: Consumer, report_lost: Callable[[Sequence[Any]], None], clock: Clock = SYSTEM) -> None:
        super().__init__(name="celeriac-renewer", daemon=True)
        self._consumer = consumer
        self._report_lost = report_lost
        self._clock = clock
        self._end = threading.Event()
        self._turn = threading.Lock()
        self._proved_at = clock.monotonic()
        self._every_s: float = min(RENEW_S, getattr(consumer, "renew_interval_s", RENEW_S))
        #: Without a renewal for so long (this process was frozen, its machine too busy) leases are not relied on.
        self.doubtful_s = 2 * self._every_s
        #: Hears of each renewal.
        self.stand_in: StandIn | None = None

    def run(self) -> None:
        """Until `stop`."""
        pause_s = self._every_s
        while not self._end.wait(pause_s):
            try:
                self.prove()
            except OperationalError as exc:  # the loop meets the same trouble and reopens; until then try sooner
                _log.warning("lease not renewed: %s", exc)
                pause_s = min(1.0, self._every_s)
                continue
            except Exception:  # a fault of the plugin's own: the next try may do better, and none would be the end
                if not self._end.is_set():
                    _log.exception("lease not renewed")
                pause_s = min(1.0, self._every_s)
                continue
            pause_s = self._every_s

    def prove(self, patience_s: float = -1) -> None:
        """Renew now, and report what is lost.

        Args:
            patience_s: A renewal that is under way is waited for so long; for ever by default.
        Raises:
            OperationalError: As `Consumer.renew`.
            TransportLost: The one under way does not come back.
        """
        if not self._turn.acquire(timeout=patience_s):
            raise TransportLost(f"a renewal of the leases has not come back for {self.doubtful_s + patience_s:.0f} s")
        try:
            asked_at = self._clock.monotonic()
            lost = self._consumer.renew()
            if lost:  # before another may ask: it would hear of nothing, and go on as if all were held
                self._report_lost(lost)
            self._proved_at = asked_at
        finally:
            self._turn.release()
        if self.stand_in is not None:
            self.stand_in.renewed()

    def share(self, stand_in: StandIn) -> None:
        """From now on this one renews when we cannot."""
        self.stand_in = stand_in
        stand_in.keep(self._consumer, self._every_s)

    def is_doubtful(self) -> bool:
        """It is so long since the last renewal that others may have taken the messages."""
        return self._clock.monotonic() - self._proved_at > self.doubtful_s

    def stop(self) -> None:
        """End; a renewal under way finishes by itself."""
        self._end.set()


class Link:
    """The way to one broker for one worker. Used by one thread.

    Args:
        owner: This worker incarnation's name; each epoch adds its number.
        backend: Where states go; in the same exchange as the acks, if it is joint with the transport.
        stand_in: Renews leases when this process cannot.
        stores: Where the states of tasks with a result backend of their own go, if there are any.
        patience: How long a lost broker is waited for.
        give_up: Called when that is over; nothing is opened again.
        check: Given each new consumer; raises if it cannot be worked with.
        check_received: Given what should be a list of deliveries and is no list; raises, and says whose it is.
        unsent: What follows when a call that follows from a run has nowhere to go.

    Attributes:
        consumer: None while the broker is away.
        epoch: Of the current or last opening.
        lost_tags: Tags whose lease the renewer found lost.
        received: How many deliveries came, over all openings.
        received_at: Unix time at which the last ones came, if the result store wants to know (R13).
    """

    def __init__(
        self,
        transport: Transport,
        router: Router,
        backend: ResultBackend | None,
        *,
        owner: str,
        queues: Sequence[QueueSpec],
        poller: Poller,
        joiner: Joiner | None = None,
        make_spool: Callable[[], Spool] = Spool,
        make_renewer: Callable[[Consumer, Callable[[Sequence[Any]], None], Clock], Renewer] = Renewer,
        stand_in: StandIn | None = None,
        stores: Stores | None = None,
        patience: Patience = ENDLESS,
        give_up: Callable[[], None] = lambda: None,
        check: Callable[[Consumer], None] = lambda consumer: None,
        check_received: Callable[[Any], None] = lambda received: None,
        unsent: Callable[[Payload, PublishRejected], Following] | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._transport = transport
        self._router = router
        self._backend = backend
        self._owner = owner
        self._queues = list(queues)
        self._poller = poller
        self._joiner = joiner
        self._make_spool = make_spool
        self._make_renewer = make_renewer
        self._stand_in = stand_in
        self._patience = patience
        self._give_up = give_up
        self._check = check
        self._check_received = check_received
        self._unsent = unsent
        self._clock = clock
        self._homeless: list[Ending] = []  # of messages acknowledged before they ran: nobody else will end them
        self._settler: Settler | None = None
        self._stores = stores
        self._hear_unsent: Callable[[], list[tuple[Payload, str]]] | None = None
        self._aside: Settler | None = None  # for endings with such states: stored, then sent and acknowledged
        self._renewer: Renewer | None = None
        self._window = 0
        self._failures = 0
        self._reopen_at = 0.0
        self._lost_at = 0.0
        self._declared: dict[str, bool] = Bounded(REMEMBERED)
        self.consumer: Consumer | None = None
        self.epoch = self._openings = 0
        self.received = 0
        self.received_at = 0.0
        self._fences = False
        self.lost_tags: deque[Any] = deque()

    # -- opening and losing ---------------------------------------------------------------------------------

    def open(self, window: int) -> None:
        """Begin to consume.

        Raises:
            OperationalError, ImproperlyConfigured: As `Transport.consumer`.
        """
        self._openings += 1
        self._window = window
        owner = f"{self._owner}.{self._openings}"
        self.consumer = self._transport.consumer(self._queues, owner=owner, poller=self._poller, window=window)
        self.epoch = self._openings  # not of one that came to nothing: what runs is lost once, whatever it takes
        self._check(self.consumer)
        self._hear_unsent = getattr(self.consumer, "unsent", None)
        joint = self._backend is not None and self._backend.joint is not None
        joint = joint and self._backend.joint == self._transport.joint  # type: ignore[union-attr]
        self._fences = self._backend is not None and not joint and "fence" in self._backend.abilities
        make_settler = partial(
            Settler, self.consumer, fail=None if self._unsent is None else self._fail, clock=self._clock
        )
        self._settler = make_settler(backend=self._backend, joint=joint, spool=self._make_spool())
        if self._stores is not None:
            self._aside = make_settler(backend=self._stores, joint=False, spool=self._make_spool())
        # A renewal of the last opening that is still on its way must not say that ours are lost: tags may be the same.
        self.lost_tags = deque()
        self._renewer = self._make_renewer(self.consumer, self.lost_tags.extend, self._clock)
        if self._stand_in is not None:
            self._renewer.share(self._stand_in)
        self._renewer.start()
        self._failures = 0
        homeless, self._homeless = self._homeless, []
        for place, (settlement, stored, publish, owned) in enumerate(homeless):
            rest = self._prepare(publish)
            if not self._is_up():
                self._homeless += homeless[place:]
                break
            self._settler_of(stored).add(settlement, stored, rest, owned)

    def lose(self, exc: Exception, *, by_choice: bool = False, pause_s: float = 0.2) -> None:
        """The broker is gone: let go of this epoch, and try again soon, unless the app wants no second link.

        Args:
            by_choice: It is not gone; we want a new link, which is made in any case.
            pause_s: The link is tried again after so long at most.
        """
        consumer, self.consumer = self.consumer, None
        if consumer is None:
            return
        ends = not (self._patience.after_loss or by_choice)
        then = "Ending, for broker_connection_retry is False" if ends else "Reopening"
        what = "The link to the broker is given up" if by_choice else "Lost the broker"
        (_log.error if ends else _log.warning)(
            "%s: %s. %s; unfinished messages come again.", what, _sentence(exc), then
        )
        for settler in self._settlers():
            self._homeless += settler.owned()
        self._settler = self._aside = None
        if self._joiner is not None:
            self._joiner.forget()
        self._take_unsent()
        self._declared.clear()
        self._stop_renewing()
        _close(consumer)
        self._lost_at = self._clock.monotonic()
        self._reopen_at = self._lost_at + self._clock.uniform(0, pause_s)
        if ends:
            self._give_up()

    def try_reopen(self, window: int) -> None:
        """Open again if it is time to; back off if that fails."""
        now = self._clock.monotonic()
        if self.consumer is not None or now < self._reopen_at:
            return
        try:
            self.open(window)
        except Exception as exc:  # what the plugin has not foreseen, too, may be over at the next try (B25)
            self._discard()
            self._failures += 1
            longest_s = self._patience.longest_s
            if longest_s is not None and now - self._lost_at >= longest_s:
                _log.error(
                    "The broker has been away for %.0f s, in %d tries: %s. Ending, for broker_connection_max_retries "
                    "allows no more; unfinished messages come again.",
                    now - self._lost_at,
                    self._failures,
                    _sentence(exc),
                )
                self._give_up()
                return
            pause_s = self._clock.uniform(0.1, min(LONGEST_PAUSE_S, 0.2 * 2 ** min(self._failures, 10)))
            self._reopen_at = now + pause_s
            level, what = logging.WARNING, "Broker still away"
            if isinstance(exc, ImproperlyConfigured):  # somebody has made a queue anew on other terms, or taken a right
                level, what = logging.ERROR, "The broker is there, but refuses what this worker consumes"
            unforeseen = not isinstance(exc, (OperationalError, ImproperlyConfigured))
            if unforeseen:
                level, what = logging.ERROR, "The link cannot be made anew"
            if self._failures not in (1, 10, 100, 1000):
                level = logging.DEBUG
            _log.log(level, "%s: %s. Next try in %.1f s.", what, _sentence(exc), pause_s, exc_info=unforeseen)
            return
        _log.info("The broker is back; consuming again.")

    def _discard(self) -> None:
        """Let go of what an opening has made that came to nothing."""
        consumer, self.consumer = self.consumer, None
        self._settler = self._aside = None
        if consumer is not None:
            _close(consumer)

    def prove(self) -> None:
        """Make sure of the leases before anything is done under them, if the last renewal is long ago.

        Whoever slept longer than its lease (stopped, swapped out, a machine that was suspended) must not act on
        messages that others have by now. What is lost is in `lost_tags`, or the whole link is.
        """
        if self._renewer is None or self.consumer is None or not self._renewer.is_doubtful():
            return
        _log.warning("No lease was renewed for %g s; looking what is still held.", self._renewer.doubtful_s)
        try:
            self._renewer.prove(RENEW_S)
            self.consumer.receive(0)  # where death is seen by the connection, this sees it
        except OperationalError as exc:
            self.lose(exc)

    def forget(self, tags: set[Any]) -> None:
        """The leases of these deliveries are lost: what waits to be done for them is not done."""
        for settler in self._settlers():
            settler.forget(tags)
        if self._joiner is not None:
            self._joiner.forget(tags)

    def close(self, timeout_s: float) -> int:
        """Settle what is left, within bounds, give back the rest and let go.

        Returns:
            How many finished tasks could not be settled, since their results could not be stored: they run again.
        """
        self._stop_renewing()
        consumer, settler = self.consumer, self._settler
        deadline = self._clock.monotonic() + timeout_s
        left = 0
        if consumer is not None and settler is not None:
            try:
                self._perform(consumer)
                while self._has_more() and self._clock.monotonic() < deadline:
                    self._clock.sleep(max(0.005, self._retry_in() or 0.0))
                    self._perform(consumer)
                consumer.flush(max(0.1, deadline - self._clock.monotonic()))
                if self._take_unsent():
                    self._perform(consumer)
                    consumer.flush(LAST_FLUSH_S)
            except OperationalError as exc:
                # The broker gives everything to others by itself, but what is ours alone.
                _log.debug("the last endings did not reach the broker: %s", exc)
            except Exception:  # a fault of a plugin's own: the rest is to end in good order
                _log.exception("The last endings did not reach the broker.")
            waiting: list[Settler | Joiner] = [*self._settlers(), *([] if self._joiner is None else [self._joiner])]
            left = sum(one.left() for one in waiting)
            unsettled = [settlement for one in waiting for settlement in one.unsettled()]
            with contextlib.suppress(OperationalError):  # as above
                if unsettled:  # they run again, and that is no crash of theirs
                    again = [Settlement(one.tag, "requeue", started=True, spared=True) for one in unsettled]
                    consumer.settle(again)
        for settler in self._settlers():
            self._homeless += settler.owned()
        joins = [Join(None, stored, publish, ChordWork(), True) for _, stored, publish, _ in self._homeless]
        joins += [] if self._joiner is None else self._joiner.abandon()
        self._homeless = []
        if consumer is not None:
            if joins:
                self._send_at_last(consumer, joins)
            _close(consumer)
        if joins:
            trouble = next((one.trouble for one in self._settlers() if one.trouble is not None), None)
            self._settle_homeless(joins, trouble)
        self.consumer = None
        return left

    def _send_at_last(self, consumer: Consumer, joins: Sequence[Join]) -> None:
        """If it is the store that is away, and not the broker: what follows from them need not be lost."""
        with contextlib.suppress(OperationalError):
            for join in joins:
                if join.publish:
                    consumer.settle((), publish=self._prepare(join.publish))
            consumer.flush(LAST_FLUSH_S)
            for join in joins:
                join.publish = ()

    def _settle_homeless(self, joins: Sequence[Join], trouble: Exception | None) -> None:
        """Store how tasks ended whose messages were acknowledged before they ran, though broker or store were away:
        nobody will run them again. What should follow from them and was not sent has failed."""
        stored = [state for join in joins for state in join.stored]
        unsent = [payload for join in joins for payload in join.publish]
        opened = [chord for join in joins for chord in join.chords.opened]
        parts = [part for join in joins for part in join.chords.parts]
        for payload in unsent:  # and their errbacks, which are put behind them
            if self._unsent is None or PUBLISH_TRY_HEADER in payload.headers:
                continue  # it may be out
            following = self._unsent(payload, PublishRejected("the broker was away when its worker ended"))
            stored += following.stored
            unsent += following.publish
            opened += following.opened
            parts += following.parts
        if unsent:
            named = ", ".join(f"{one.headers.get('task')}[{one.headers.get('id')}]" for one in unsent[:NAMED_UNSENT])
            _log.error(
                "The broker is away: %d messages that follow from finished tasks were not sent: %s%s",
                len(unsent), named, ", ..." if len(unsent) > NAMED_UNSENT else "",
            )  # fmt: skip
        backend = self._stores or self._backend
        if backend is None:
            return
        try:
            if trouble is not None:  # it was tried until now
                raise trouble
            if stored:
                backend.store(stored)
            if self._joiner is not None:
                self._joiner.keep(opened, parts)
        except Exception as exc:  # whatever it is, this was the last try
            _log.error("The results of %d finished tasks are lost: %s.", len(joins), _sentence(exc))

    def _stop_renewing(self) -> None:
        if self._renewer is not None:
            self._renewer.stop()
        if self._stand_in is not None:
            self._stand_in.drop()

    @property
    def queues(self) -> Sequence[QueueSpec]:
        """What is consumed."""
        return self._queues

    @property
    def is_blocked(self) -> bool:
        """Nothing is taken, since results can be neither stored nor kept."""
        settler, aside, joiner = self._settler, self._aside, self._joiner
        if aside is not None and aside.blocked:
            return True
        return (settler is not None and settler.blocked) or (joiner is not None and joiner.blocked)

    # -- receiving ------------------------------------------------------------------------------------------

    def receive(self, limit: int) -> list[Delivery]:
        """At most `limit` deliveries; none while the broker is away, or the result store for so
        long that the spool is full."""
        if self.consumer is None or self._settler is None:
            return []
        try:
            deliveries = self.consumer.receive(0 if self.is_blocked else limit)
        except OperationalError as exc:
            self.lose(exc)
            return []
        if type(deliveries) is not list:
            self._check_received(deliveries)
        self.received += len(deliveries)
        if self._fences or self._stores is not None:
            self.received_at = self._clock.unix()
        return deliveries

    def resize(self, window: int, *, exactly: bool = False) -> None:
        """Tell the consumer, if it is news: more at once, less only when it is much less, or `exactly` is wanted."""
        if self.consumer is not None and (window > self._window or window <= self._window // 4 or exactly):
            self._window = window
            self._try(self.consumer.resize, window)

    def subscribe(self, queue: QueueSpec) -> None:
        """Consume from this queue too, from now on and after each opening.

        Raises:
            ImproperlyConfigured: The broker refuses it; then nothing has changed."""
        if all(known.name != queue.name for known in self._queues):
            if self.consumer is not None:
                self._try(self.consumer.subscribe, queue)
            self._queues.append(queue)

    def unsubscribe(self, queue: str) -> None:
        """The opposite; unknown ones are no error."""
        self._queues = [known for known in self._queues if known.name != queue]
        if self.consumer is not None:
            self._try(self.consumer.unsubscribe, queue)

    def stop(self) -> None:
        """Acquire nothing more."""
        if self.consumer is not None:
            self._try(self.consumer.stop)

    # -- settling -------------------------------------------------------------------------------------------

    def settle(self, settlement: Settlement, following: Following | None = None) -> None:
        """End a delivery of this epoch that is in no flight (yet)."""
        if self._settler is None:
            return
        if following is None:
            self._settler.add(settlement)
            return
        if following.chords is not None and self._joiner is not None:
            self._joiner.add(settlement, following.stored, following.publish, following.chords, False)
            return
        publish = self._prepare(following.publish)
        if self._is_up():  # else that has cost the link, and it comes again
            self._settler_of(following.stored).add(settlement, following.stored, publish)

    def holds(self, flight: Flight) -> bool:
        """Its delivery is the present link's to end."""
        return self._settler is not None and flight.epoch == self.epoch

    def settle_flight(
        self,
        flight: Flight,
        settlement: Settlement | None,
        stored: Sequence[StoredResult] = (),
        publish: Sequence[Payload] = (),
        chords: ChordWork | None = None,
    ) -> None:
        """End a flight, or store a state of it.

        One of a lost epoch, or whose lease is lost, comes again, or another has it already: nothing of this run
        counts any more, neither its result nor what follows from it (B8).
        """
        if stored and (self._fences or self._stores is not None):
            _fence(flight, settlement, stored)
        ours = flight.acked or (self._settler is not None and flight.epoch == self.epoch)
        if chords is not None and self._joiner is not None and ours:
            self._joiner.add(settlement, stored, publish, chords, flight.acked)
            return
        if flight.acked:  # it will not come again, so no later link or lease can have another run of it
            if self._settler is None:
                self._homeless.append((None, stored, publish, True))
                return
        elif self._settler is None or flight.epoch != self.epoch:
            return
        if publish:
            rest = self._prepare(publish)
            if not self._is_up():  # that has cost the link, so it comes again; or would never, if acknowledged
                if flight.acked:
                    self._homeless.append((None, stored, publish, True))
                return
            publish = rest
        settler = self._settler if self._stores is None else self._settler_of(stored)
        settler.add(settlement, stored, publish, flight.acked)

    def perform(self) -> None:
        """Do all that was settled, or as much as can be done now."""
        if self._settler is not None and self.consumer is not None:
            self._try(self._perform, self.consumer)

    def _perform(self, consumer: Consumer) -> None:
        assert self._settler is not None
        if self._hear_unsent is not None:
            self._take_unsent()
            if not self._is_up():
                return
        self._settler.perform()
        if self._aside is not None:
            self._aside.perform()
        if self._joiner is not None:
            self._joiner.perform(consumer, self._prepare_or_raise)

    def _fail(self, settlement: Settlement | None, unsent: Sequence[Unsent]) -> None:
        """These calls have failed, and their delivery is set aside."""
        assert self._unsent is not None
        following = Following()
        for payload, exc in unsent:
            following.take(self._unsent(payload, exc))
        stored, chords, owned = following.stored, following.chords, settlement is None  # owned: nobody else will do it
        if chords is not None and self._joiner is not None and (owned or self._is_up()):
            self._joiner.add(settlement, stored, following.publish, chords, owned)
            return
        publish = self._prepare(following.publish) if self._is_up() else following.publish
        if self._is_up():
            self._settler_of(stored).add(settlement, stored, publish, owned)
        elif owned:
            self._homeless.append((None, stored, following.publish, True))

    def _take_unsent(self) -> bool:
        """What the broker has said to have nowhere to go after the deliveries were settled; True if there was some."""
        unsent = [] if self._hear_unsent is None else self._hear_unsent()
        if unsent and self._unsent is not None:
            self._fail(None, [(payload, PublishRejected(why)) for payload, why in unsent])
        return bool(unsent)

    def _has_more(self) -> bool:
        troubled = any(settler.trouble is not None or settler.has_news for settler in self._settlers())
        return troubled or (self._joiner is not None and self._joiner.left() > 0)

    def _retry_in(self) -> float | None:
        """Seconds until a settler wants a turn, while its result store is away."""
        wanted = [retry_s for settler in self._settlers() if (retry_s := settler.retry_in()) is not None]
        return min(wanted, default=None)

    def _settlers(self) -> list[Settler]:
        """Those of the present link; none while the broker is away."""
        return [settler for settler in (self._settler, self._aside) if settler is not None]

    def _settler_of(self, stored: Sequence[StoredResult]) -> Settler:
        """Whose an ending is: of a state for a task's own store, the one that stores apart from the broker."""
        apart = self._aside is not None and any(state.keeper for state in stored)
        settler = self._aside if apart else self._settler
        assert settler is not None
        return settler

    def held(self) -> int:
        """How many endings wait for the result store."""
        return sum(settler.left() for settler in self._settlers() if settler.trouble is not None)

    def waiting(self) -> list[StoredResult]:
        """What is to be stored of them."""
        return [state for settler in self._settlers() for state in settler.waiting()]

    # -- for the loop's sleep -------------------------------------------------------------------------------

    def next_in(self, now: float, wanting: bool) -> float | None:
        """Seconds until the link wants a turn; None: when its descriptor says so.

        Args:
            wanting: There is room for more deliveries.
        """
        if self.consumer is None:
            return max(0.0, self._reopen_at - now)
        assert self._settler is not None
        retry_s = self._settler.retry_in() if self._aside is None else self._retry_in()
        if self._joiner is not None:
            join_s = self._joiner.next_in()
            retry_s = join_s if retry_s is None else retry_s if join_s is None else min(retry_s, join_s)
        blocked = self._settler.blocked or (self._aside is not None and self._aside.blocked)
        poll_s = self.consumer.poll_interval_s if wanting and not blocked else None
        if retry_s is None or poll_s is None:
            return poll_s if retry_s is None else retry_s
        return min(retry_s, poll_s)

    def _prepare(self, payloads: Sequence[Payload]) -> Sequence[Payload]:
        """Send those that go to all who listen, declare the queues of the others, and return these. May cost the
        link."""
        rest = self._broadcast(payloads) if self._router.broadcasts and payloads else payloads
        self._declare_targets(rest)
        return rest

    def _prepare_or_raise(self, payloads: Sequence[Payload]) -> Sequence[Payload]:
        rest = self._prepare(payloads)
        if not self._is_up():
            raise TransportLost("the link was lost while what follows was prepared")
        return rest

    def _broadcast(self, payloads: Sequence[Payload]) -> Sequence[Payload]:
        """Send what goes to all who listen, ahead of the acknowledgement; returns the rest."""
        try:
            return broadcast(payloads, self._transport, self._router)
        except OperationalError as exc:
            self.lose(exc)
            return []

    def _is_up(self) -> bool:
        return self._settler is not None

    def _declare_targets(self, payloads: Sequence[Payload]) -> None:
        for payload in payloads:
            queue = payload.route.queue
            if queue and queue not in self._declared:
                notice = payload.headers.get("task") == NOTICE
                self._declared[queue] = True
                try:
                    spec = reply_queue_spec(queue) if notice else self._router.spec(queue)
                    self._try(self._transport.declare, [spec])
                except (ImproperlyConfigured, QueueNotFound, UnicodeEncodeError) as exc:
                    # It may well be there under other terms; if it is not, the broker refuses the message itself, as it
                    # does a name that is no UTF-8.
                    _log.error("Cannot declare queue %r: %s", queue, exc)

    def _try(self, verb: Callable[..., Any], *args: Any) -> None:
        try:
            verb(*args)
        except OperationalError as exc:
            self.lose(exc)


def _close(consumer: Consumer) -> None:
    """Let go of a consumer that is of no use any more."""
    try:
        consumer.close()
    except OperationalError as exc:
        _log.debug("a consumer was not closed in good order: %s", exc)  # it is gone already
    except Exception:  # a fault of the plugin's own
        _log.exception("A consumer was not closed in good order.")


def _fence(flight: Flight, settlement: Settlement | None, stored: Sequence[StoredResult]) -> None:
    """Say of these states which receiver's they are, for a store that does not know who has the message (R13).

    What is set aside may be given back by a person, and keeps nobody out.
    """
    again = flight.delivery.redelivered and (settlement is None or settlement.verb != "dead")
    for state in stored:
        state.received, state.redelivered = flight.received, again


def _sentence(exc: Exception) -> str:
    """An error's text, to stand within a sentence."""
    return str(exc).rstrip(".?! ")
