"""The tasks of this Django app."""

from celeriac import shared_task
from orders.models import Order


@shared_task
def send_receipt(order_id):
    """Write the receipt of an order, and return it."""
    order = Order.objects.get(pk=order_id)
    order.receipt = f"One {order.product}, thank you."
    order.save(update_fields=["receipt"])
    return order.receipt
