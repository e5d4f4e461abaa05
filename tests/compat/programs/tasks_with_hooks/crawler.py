import os

import celery
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, SoftTimeLimitExceeded

app = celery.Celery("crawler", broker="redis://localhost:6379/0", backend="redis://localhost:6379/1")
app.conf.task_time_limit = 60


def note(*words):
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(" ".join(map(str, words)) + "\n")


class Noisy(celery.Task):
    """Tells of everything that happens to it."""

    abstract = True
    _connection = None

    @property
    def connection(self):
        if self._connection is None:
            self._connection = object()
        return self._connection

    def before_start(self, task_id, args, kwargs):
        note(self.name, "starts", self.request.retries)

    def on_success(self, retval, task_id, args, kwargs):
        note(self.name, "succeeded with", retval)

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        note(self.name, "is tried again after", type(exc).__name__)

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note(self.name, "failed with", type(exc).__name__, isinstance(einfo.exception, Exception))

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        note(self.name, "is over", status)


class Flaky(Exception):
    pass


@app.task(bind=True, base=Noisy, max_retries=3, default_retry_delay=0.05)
def fetch(self, url, good_at):
    if self.request.retries < good_at:
        try:
            raise Flaky(url)
        except Flaky as exc:
            raise self.retry(exc=exc, countdown=0.05)
    return (url, self.request.retries, self.connection is fetch.connection)


@app.task(base=Noisy, autoretry_for=(Flaky,), max_retries=1, retry_backoff=0.05, retry_jitter=False)
def fetch_by_itself(url):
    raise Flaky(url)


@app.task(bind=True, max_retries=0)
def give_up(self):
    try:
        self.retry(countdown=1)
    except MaxRetriesExceededError:
        return "gave up"


@app.task(soft_time_limit=1)
def long_one():
    try:
        while True:
            pass
    except SoftTimeLimitExceeded:
        return "stopped in time"


@app.task(bind=True, base=Noisy)
def own_state(self):
    self.update_state(state="PROGRESS", meta={"done": 3, "of": 7})
    raise Ignore()


@app.task(bind=True, base=Noisy, acks_late=True)
def unwanted(self):
    note("unwanted is rejected")
    raise Reject("nobody wants it", requeue=False)


class Counting(app.Task):
    name = "crawler.counting"

    def __init__(self):
        self.calls = 0

    def run(self, step):
        self.calls += step
        return self.calls


counting = app.register_task(Counting())
