"""Tasks and shapes for the tests of canvases; made of Celery or of celeriac, as CANVAS_LIB says."""

import importlib
import os

library = importlib.import_module(os.environ.get("CANVAS_LIB", "celeriac"))
canvas = importlib.import_module(f"{library.__name__}.canvas")
chain, chord, group = library.chain, library.chord, library.group

app = library.Celery("canvas_app", broker=os.environ.get("SUITE_BROKER"), backend=os.environ.get("SUITE_BACKEND"))
app.conf.update(broker_connection_retry_on_startup=True, result_extended=True)
if library.__name__ == "celeriac" and "SUITE_PATIENCE" in os.environ:
    app.conf.result_chord_patience = float(os.environ["SUITE_PATIENCE"])
if "SUITE_QUEUE" in os.environ:
    app.conf.task_default_queue = os.environ["SUITE_QUEUE"]


@app.task(name="c.add")
def add(x, y):
    return x + y


@app.task(name="c.ident")
def ident(*args):
    return args[0] if len(args) == 1 else list(args)


@app.task(name="c.const")
def const(x):
    return x


@app.task(name="c.total")
def total(numbers):
    return sum(numbers)


@app.task(name="c.boom")
def boom(*_):
    raise ValueError("boom")


@app.task(name="c.pair")
def pair(x):
    return [x, x + 1]


@app.task(name="c.die")
def die(*_):
    os._exit(1)


@app.task(name="c.note")
def note(*args):
    """Say that it ran, in one write, so that lines of several processes do not mix."""
    fd = os.open(os.path.join(os.environ["SUITE_PLACE"], "ran"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, (repr(args) + "\n").encode())
    os.close(fd)
    return args[0] if args else None


@app.task(name="c.old_errback")
def old_errback(task_id):
    note(f"old {task_id}")


@app.task(name="c.new_errback")
def new_errback(request, exc, traceback):
    note(f"new {request.id} {type(exc).__name__} {bool(traceback)}")


@app.task(name="c.stamps", bind=True)
def stamps(self, *_):
    return dict(self.request.stamps or {})


@app.task(name="c.replaced", bind=True)
def replaced(self, how):
    others = {
        "call": lambda: add.si(2, 3),
        "group": lambda: group(const.si(1), const.si(2)),
        "chain": lambda: chain(const.si(1), add.s(5)),
        "chord": lambda: chord([const.si(1), const.si(2)], total.s()),
        "itself": lambda: replaced.si("call"),
    }
    return self.replace(others[how]())


@app.task(name="c.adder", bind=True)
def adder(self, count):
    for n in range(count):
        self.add_to_chord(const.si(100 + n))
    return count


@app.task(name="c.caller", bind=True)
def caller(self, count):
    group(const.si(n) for n in range(count)).apply_async()
    return count


@app.task(name="c.kept", bind=True, default_retry_delay=0)
def kept(self, x, before=None):
    """Tries again once, and says what is not as it was."""
    request = self.request
    lengths = [len(words or ()) for words in (request.callbacks, request.errbacks, request.chain)]
    parent_id = request.parent_id if request.parent_id != request.id else None  # Celery's retries become their own
    now = [request.id, request.root_id, parent_id, request.group, request.group_index, *lengths]
    now.append(request.chord and request.chord["options"].get("task_id"))
    if before is None:
        raise self.retry(args=(x,), kwargs={"before": now}, countdown=0)
    return x if now == before else [before, now]


@app.task(name="c.tired", bind=True, max_retries=1, default_retry_delay=0)
def tired(self, *_):
    raise self.retry(exc=ValueError("boom"), countdown=0)


c = const.si
#: name → (how to make it, what it gives)
SHAPES = {
    "a|b": (lambda: chain(c(1), add.s(2)), 3),
    "a|group": (lambda: c(1) | group(add.s(1), add.s(2)), [2, 3]),
    "group|a": (lambda: group(c(1), c(2)) | total.s(), 3),
    "a|group|b": (lambda: c(1) | group(add.s(1), add.s(2)) | total.s(), 5),
    "a|group|b|c": (lambda: c(1) | group(add.s(1), add.s(2)) | total.s() | add.s(100), 105),
    "a|group|group": (
        lambda: c(1) | group(add.s(1), add.s(2)) | group(ident.s(), ident.s("x")),
        [[2, 3], [[2, 3], "x"]],
    ),
    "group|group": (lambda: group(c(1), c(2)) | group(ident.s(), total.s()), [[1, 2], 3]),
    "group of groups": (lambda: group(group(c(1), c(2)), c(3)), [1, 2, 3]),
    "group of chains": (lambda: group(chain(c(1), add.s(1)), c(3)), [2, 3]),
    "group of a|group": (lambda: group(chain(c(1), group(add.s(1), add.s(2))), c(3)), [[2, 3], 3]),
    "chord": (lambda: chord([c(1), c(2)], total.s()), 3),
    "chord of a|group": (lambda: chord([chain(c(1), group(add.s(1), add.s(2))), c(3)], ident.s()), [[2, 3], 3]),
    "chord of chains": (lambda: chord([chain(c(1), add.s(1)), c(3)], ident.s()), [2, 3]),
    "chord of chords": (lambda: chord([chord([c(1), c(2)], total.s()), c(3)], ident.s()), [3, 3]),
    "chord of group|a": (lambda: chord([group(c(1), c(2)) | total.s(), c(3)], ident.s()), [3, 3]),
    "chord, body a chain": (lambda: chord([c(1), c(2)], chain(total.s(), add.s(1))), 4),
    "chord, body a group": (lambda: chord([c(1), c(2)], group(total.s(), ident.s())), [3, [1, 2]]),
    "chord, body a chord": (lambda: chord([c(1), c(2)], chord([total.s(), total.s()], ident.s())), [3, 3]),
    "chord|a": (lambda: chord([c(1), c(2)], total.s()) | add.s(10), 13),
    "chord|group": (lambda: chord([c(1), c(2)], total.s()) | group(add.s(10), add.s(20)), [13, 23]),
    "chord|chord": (lambda: chord([c(1), c(2)], total.s()) | chord([add.s(1), add.s(2)], total.s()), 9),
    "a|chord": (lambda: c(1) | chord([add.s(1), add.s(2)], total.s()), 5),
    "a|chord|b": (lambda: c(1) | chord([add.s(1), add.s(2)], total.s()) | add.s(1), 6),
    "empty chord": (lambda: chord([], ident.s()), []),
    "chord of one": (lambda: chord([c(1)], ident.s()), [1]),
    "group of one|a": (lambda: group(c(1)) | ident.s(), [1]),
    "group of one": (lambda: group(c(1)), [1]),
    "empty group": (lambda: group(), []),
    "empty group|a": (lambda: group() | ident.s(), []),
    "a|empty group": (lambda: c(1) | group(), 1),
    "a|group of one": (lambda: c(1) | group(ident.s()), 1),
    "a|group of one|b": (lambda: c(1) | group(ident.s()) | ident.s(), 1),
    "chain of one": (lambda: chain(c(1)), 1),
    "chain of chains": (lambda: chain(chain(c(1), add.s(1)), chain(add.s(2), add.s(3))), 7),
    "chain of a group": (lambda: chain(group(c(1), c(2))), [1, 2]),
    "map": (lambda: pair.map([1, 2, 3]), [[1, 2], [2, 3], [3, 4]]),
    "starmap": (lambda: add.starmap([(1, 2), (3, 4)]), [3, 7]),
    "chunks": (lambda: add.chunks([(1, 2), (3, 4), (5, 6)], 2), [[3, 7], [11]]),
    "a|map": (lambda: c(1) | pair.map([1]), [[1, 2]]),
    "chord of a map": (lambda: chord([pair.map([1, 2])], ident.s()), [[[1, 2], [2, 3]]]),
    "chord of chunks": (lambda: chord(add.chunks([(1, 2), (3, 4), (5, 6)], 2).group(), ident.s()), [[3, 7], [11]]),
    "replaced by a call": (lambda: replaced.si("call"), 5),
    "replaced by a group": (lambda: replaced.si("group"), [1, 2]),
    "replaced by a chain": (lambda: replaced.si("chain"), 6),
    "replaced by a chord": (lambda: replaced.si("chord"), 3),
    "replaced by itself": (lambda: replaced.si("itself"), 5),
    "replaced by a call|a": (lambda: replaced.si("call") | add.s(10), 15),
    "replaced by a group|a": (lambda: replaced.si("group") | ident.s("z"), [[1, 2], "z"]),
    "replaced by a chain|a": (lambda: replaced.si("chain") | add.s(10), 16),
    "replaced by a chord|a": (lambda: replaced.si("chord") | add.s(10), 13),
    "part replaced by a call": (lambda: chord([replaced.si("call"), c(9)], ident.s()), [5, 9]),
    "part replaced by a group": (lambda: chord([replaced.si("group"), c(9)], ident.s()), [[1, 2], 9]),
    "part replaced by a chain": (lambda: chord([replaced.si("chain"), c(9)], ident.s()), [6, 9]),
    "part replaced by a chord": (lambda: chord([replaced.si("chord"), c(9)], ident.s()), [3, 9]),
    "retried": (lambda: kept.s(5), 5),
    "a|retried|b": (lambda: c(1) | kept.s() | add.s(2), 3),
    "group of retried": (lambda: group(kept.s(1), kept.s(2)), [1, 2]),
    "chord of retried": (lambda: chord([kept.s(1), c(2)], kept.s()), [1, 2]),
    "a|chord of retried|b": (lambda: c(1) | group(kept.s(), add.s(1)) | kept.s() | total.s(), 3),
    "body replaced": (lambda: chord([c(1), c(9)], replaced.si("chain")), 6),
}
#: Gives a list whose order is not said.
GROWING = (lambda: chord([adder.si(2), c(9)], ident.s()), [2, 9, 100, 101])
#: name → (how to make it, what its error is called)
FAILURES = {
    "a chain": (lambda: chain(boom.si(), add.s(1), add.s(2)), "ValueError"),
    "a part": (lambda: chord([c(1), boom.si()], total.s()), "ChordError"),
    "a chain in a header": (lambda: chord([c(1), chain(boom.si(), add.s(1))], total.s()), "ChordError"),
    "before a chord": (lambda: boom.si() | chord([add.s(1), add.s(2)], total.s()), "ValueError"),
    "a part, and after the chord": (lambda: chord([c(1), boom.si()], total.s()) | add.s(1), "ChordError"),
    "retries used up": (lambda: tired.si() | add.s(1), "ValueError"),
    "retries used up in a part": (lambda: chord([c(1), tired.si()], total.s()), "ChordError"),
    "a member": (lambda: group(c(1), boom.si()), "ValueError"),
    "a part of a part": (lambda: chord([chord([c(1), boom.si()], total.s()), c(3)], ident.s()), "ChordError"),
    "a body": (lambda: chord([c(1), c(2)], boom.s()) | add.s(1), "ValueError"),
    "before a group": (lambda: boom.si() | group(add.s(1), add.s(2)), "ValueError"),
    "before a group in a header": (
        lambda: chord([boom.si() | group(add.s(1), add.s(2)), c(1)], ident.s()),
        "ChordError",
    ),
}
