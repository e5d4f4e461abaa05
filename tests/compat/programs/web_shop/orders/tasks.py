from celery import shared_task
from mails.tasks import send_receipt


@shared_task(bind=True)
def place(self, order):
    mail = send_receipt.apply_async(args=[order], headers={"shop": "north"})
    return {"order": order["number"], "mail": mail.id, "queue": self.request.delivery_info["routing_key"]}
