from celery import Celery
from kombu import Exchange, Queue

from . import settings

app = Celery("website")
app.config_from_object("website.settings", namespace="CELERY")
app.autodiscover_tasks(lambda: settings.INSTALLED_APPS)
app.conf.task_queues = (
    Queue("shop", Exchange("shop"), routing_key="shop"),
    Queue("mails", Exchange("mails", type="topic"), routing_key="mail.#"),
)


@app.task(bind=True, ignore_result=True)
def debug_task(self):
    print(f"Request: {self.request!r}")
