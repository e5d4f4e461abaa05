from celery import current_task, shared_task


@shared_task(name="mails.tasks.send_receipt")
def send_receipt(order):
    total = sum(item["price"] for item in order["items"])
    return f"order {order['number']}: {total:.2f}, from {current_task.request.headers['shop']}"
