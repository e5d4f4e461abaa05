"""A client of `canvas_app` in a process of its own: does what it can, and prints what came as one JSON object."""

import argparse
import json
import os
import sys

from canvas_app import FAILURES, GROWING, SHAPES, add, app, boom, chord, const, ident, new_errback, old_errback, stamps

GET_S = 60


def shapes():
    sent = {name: SHAPES[name][0]().apply_async() for name in words.shapes or SHAPES}
    return {name: result.get(timeout=GET_S) for name, result in sent.items()}


def growing():
    return sorted(GROWING[0]().apply_async().get(timeout=GET_S))


def failures():
    sent = {name: make().apply_async() for name, (make, _) in FAILURES.items() if name in words.failures}
    seen = {}
    for name, result in sent.items():
        try:
            alone = {} if hasattr(result, "results") else {"follow_parents": False}
            seen[name] = repr(result.get(timeout=GET_S, **alone))
        except Exception as exc:
            seen[name] = type(exc).__name__
    return seen


def callbacks():
    good = add.s(1, 2)
    good.link(ident.s("linked"))
    good.apply_async().get(timeout=GET_S)
    for errback in (old_errback, new_errback):
        bad = boom.si()
        bad.link_error(errback.s())
        result = bad.apply_async()
        result.get(timeout=GET_S, propagate=False)
    return "sent"


def linked():
    body = chord([const.si(1), const.si(2)], ident.s())
    body.link(add.s([3]))
    result = body.apply_async()
    result.get(timeout=GET_S)
    return result.children[0].get(timeout=GET_S)


def chord_error():
    result = chord([const.si(1), boom.si()], ident.s()).apply_async()
    return str(result.get(timeout=GET_S, propagate=False, follow_parents=False)).replace(result.parent[1].id, "ID")


def header_errbacks():
    """The ids of the part and of the body, of which both have failed."""
    app.conf.task_allow_error_cb_on_chord_header = True
    canvas = chord([const.si(1), boom.si()], ident.s())
    canvas.link_error(old_errback.s())
    app.conf.task_allow_error_cb_on_chord_header = False
    result = canvas.apply_async()
    result.get(timeout=GET_S, propagate=False, follow_parents=False)
    return [result.parent[1].id, result.id]


def stamped():
    call = stamps.si()
    call.stamp(customer="acme", tags=["x", "y"])
    chain = stamps.si() | stamps.s()
    chain.stamp(customer="acme")
    joined = chord([stamps.si()], ident.s())
    joined.stamp(part=1)
    return [canvas.apply_async().get(timeout=GET_S) for canvas in (call, chain, joined)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option in ("--verbs", "--shapes", "--failures"):
        parser.add_argument(option, nargs="*", default=[])
    words = parser.parse_args()
    print(json.dumps({verb: globals()[verb]() for verb in words.verbs}))
    sys.stdout.flush()
    os._exit(0)  # a client of Celery's complains of its own end otherwise
