"""What is sold."""

from django.db import models, transaction


class Order(models.Model):
    """An order, and its receipt once it was sent."""

    product = models.CharField(max_length=100)
    receipt = models.CharField(max_length=200, blank=True)

    def __str__(self):
        return f"order {self.pk} of {self.product}"

    @classmethod
    @transaction.atomic
    def place(cls, product):
        """Write an order; its receipt is sent when that is committed."""
        from orders.tasks import send_receipt

        order = cls.objects.create(product=product)
        send_receipt.delay_on_commit(order.pk)
        if not product.isalpha():
            raise ValueError(f"we do not sell {product!r}")  # too late: but nothing was sent
        return order
