"""One app, made of Celery or of celeriac as INTEROP_LIB says: the same code is worker and client on both sides."""

import ast
import importlib
import os
import sys
import time

library = importlib.import_module(os.environ["INTEROP_LIB"])

app = library.Celery("interop", broker=os.environ["INTEROP_BROKER"], backend=os.environ["INTEROP_BACKEND"])
app.conf.update(
    accept_content=["json", "pickle", "msgpack", "yaml"],
    result_accept_content=["json", "pickle", "msgpack", "yaml"],
    task_default_queue=os.environ.get("INTEROP_QUEUE", "interop"),
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    enable_utc=True,
)
if os.environ["INTEROP_LIB"] == "celeriac":
    app.conf.allow_unsafe_serializers = True
if "INTEROP_RESULT_SERIALIZER" in os.environ:
    app.conf.result_serializer = os.environ["INTEROP_RESULT_SERIALIZER"]
if "INTEROP_RESULT_COMPRESSION" in os.environ:
    app.conf.result_compression = os.environ["INTEROP_RESULT_COMPRESSION"]
if "INTEROP_SETTINGS" in os.environ:
    app.conf.update(ast.literal_eval(os.environ["INTEROP_SETTINGS"]))


class OddError(Exception):
    """With two arguments, which must travel."""


@app.task(name="interop.add")
def add(x, y):
    return x + y


@app.task(name="interop.echo")
def echo(*args, **kwargs):
    return [list(args), kwargs]


@app.task(name="interop.fail")
def fail(text):
    raise OddError(text, 7)


@app.task(name="interop.key_error")
def key_error(text):
    return {}[text]


@app.task(bind=True, name="interop.about")
def about(self):
    request = self.request
    return {
        "library": os.environ["INTEROP_LIB"],
        "id": request.id,
        "retries": request.retries,
        "correlation_id": request.correlation_id,
        "origin": bool(request.origin),
        "eta": bool(request.eta),
        "root_id": request.root_id,
    }


@app.task(bind=True, name="interop.retry", max_retries=3)
def retry(self, times):
    if self.request.retries < times:
        raise self.retry(countdown=0.1)
    return self.request.retries


@app.task(name="interop.note")
def note(path, text):
    with open(path, "a") as file:
        file.write(text + "\n")


@app.task(name="interop.hold")
def hold(begun, go_on):
    with open(begun, "w"):
        pass
    _wait_for(go_on)
    return "held"


@app.task(bind=True, name="interop.progress")
def progress(self, go_on):
    self.update_state(state="HALFWAY", meta={"done": 50})
    _wait_for(go_on)
    return "done"


def _wait_for(path):
    deadline = time.monotonic() + 100
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.05)


def serve():
    """The client's half: a request on each line of stdin, an answer on each line of stdout, both as Python literals."""
    for line in sys.stdin:
        verb, words = ast.literal_eval(line)
        try:
            answer = (True, VERBS[verb](*words))
        except BaseException as exc:
            answer = (False, (type(exc).__name__, exc.args, str(getattr(exc, "__module__", ""))))
        print(repr(answer), flush=True)


def _call(task, args, kwargs, options):
    return app.send_task(task, args, kwargs, **options).id


def _get(task_id, timeout):
    return app.AsyncResult(task_id).get(timeout=timeout)


def _look(task_id):
    result = app.AsyncResult(task_id)
    state, info = result.state, result.info  # each is a look of its own; a later one sees no earlier state
    return {
        "state": state,
        "info": info if isinstance(info, dict) else repr(info),
        "traceback": result.traceback,
        "ready": result.ready(),
    }


VERBS = {"call": _call, "get": _get, "look": _look}

if __name__ == "__main__":
    serve()
