"""What canvases do when they are run here and now, by Celery or by celeriac, as CANVAS_LIB says; printed as JSON."""

import importlib
import json
import os

library = importlib.import_module(os.environ.get("CANVAS_LIB", "celeriac"))
chain, chord, group = library.chain, library.chord, library.group
app = library.Celery("eager_app", broker="memory://", backend="cache+memory://")
told = []


@app.task(name="e.add")
def add(x, y):
    told.append(f"add {x} {y}")
    return x + y


@app.task(name="e.total")
def total(numbers):
    told.append(f"total {numbers}")
    return sum(numbers)


@app.task(name="e.boom")
def boom(*args):
    told.append(f"boom {list(args)}")
    raise ValueError("boom")


@app.task(name="e.old_errback")
def old_errback(task_id):
    told.append(f"old errback {task_id}")


@app.task(name="e.new_errback")
def new_errback(request, exc, traceback):
    told.append(f"new errback {request.id} {exc!r} {bool(traceback)}")


@app.task(name="e.retrying", bind=True, max_retries=2, default_retry_delay=0)
def retrying(self, succeed_at):
    request = self.request
    told.append(f"try {request.retries} of {request.id}")
    if request.retries < succeed_at:
        raise self.retry(exc=KeyError("again"))
    return request.retries


@app.task(name="e.failing_hook", bind=True)
def about(self, *_):
    told.append(f"about eager={self.request.is_eager} called_directly={self.request.called_directly}")
    return self.request.retries


def errbacks(signature):
    return signature.on_error(old_errback.s()).on_error(new_errback.s())


CASES = {
    "a call": lambda go: go(add.s(1, 2)),
    "link": lambda go: go(add.s(1, 2), link=add.s(10)),
    "links in links": lambda go: go(add.s(1, 2), link=add.s(10).set(link=add.s(100))),
    "link_error as an option": lambda go: go(boom.si(), link_error=old_errback.s()),
    "link_error": lambda go: go(errbacks(boom.si())),
    "no link after a failure": lambda go: go(boom.si(), link=add.s(10)),
    "a link that fails": lambda go: go(add.s(1, 2), link=boom.s()),
    "a chain": lambda go: go(chain(add.s(1, 2), add.s(3), add.s(4))),
    "a chain that fails": lambda go: go(chain(add.s(1, 2), errbacks(boom.s()), add.s(4))),
    "a chain with an errback of its own": lambda go: go(errbacks(chain(add.s(1, 2), boom.s(), add.s(4)))),
    "a group": lambda go: go(group(add.s(1, 2), add.s(3, 4))),
    "a group that fails": lambda go: go(group(add.s(1, 2), errbacks(boom.si()))),
    "a chord": lambda go: go(chord([add.s(1, 2), add.s(3, 4)], total.s())),
    "a chord whose part fails": lambda go: go(chord([add.s(1, 2), errbacks(boom.si())], total.s())),
    "a chord whose body fails": lambda go: go(chord([add.s(1, 2)], errbacks(boom.s()))),
    "retry": lambda go: go(retrying.s(1)),
    "retry in a chain": lambda go: go(chain(retrying.s(1), add.s(10))),
    "retry in a group": lambda go: go(group(retrying.s(1), retrying.s(2))),
    "retry in a chord": lambda go: go(chord([retrying.s(1), retrying.s(0)], total.s())),
    "retry with a link": lambda go: go(retrying.s(1), link=add.s(10)),
    "retries used up": lambda go: go(errbacks(retrying.s(9))),
    "retries used up, errback as an option": lambda go: go(retrying.s(9), link_error=old_errback.s()),
    "the request": lambda go: go(about.s()),
}


def described(result):
    if hasattr(result, "results"):
        return [described(one) for one in result.results]
    value = result.result
    return [result.state, repr(value) if isinstance(value, BaseException) else value]


def seen(case, go):
    """What a case gives and tells, with ids named in the order in which they are told."""
    told.clear()
    try:
        given = described(CASES[case](go))
    except Exception as exc:
        given = f"raised {exc!r}"
    names = {}
    for line in told:
        for word in line.split():
            if word.count("-") == 4:
                names.setdefault(word, f"id{len(names)}")
    lines = [" ".join(names.get(word, word) for word in line.split()) for line in told]
    return {"given": given, "told": lines}


def main():
    ways = {
        "apply": (False, False, lambda sig, **options: sig.apply(**options)),
        "always eager": (True, False, lambda sig, **options: sig.apply_async(**options)),
        "always eager, raising": (True, True, lambda sig, **options: sig.apply_async(**options)),
    }
    found = {}
    for name, (always, propagates, go) in ways.items():
        app.conf.update(task_always_eager=always, task_eager_propagates=propagates)
        found[name] = {case: seen(case, go) for case in CASES}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
