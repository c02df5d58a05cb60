"""The web site's tables."""

from django.db import models


class Product(models.Model):
    sku = models.CharField(max_length=20, primary_key=True)
    stock = models.IntegerField(default=0)


class Order(models.Model):
    class State(models.TextChoices):
        PLACED = "placed"
        SHIPPED = "shipped"

    sku = models.CharField(max_length=20)
    quantity = models.IntegerField()
    state = models.CharField(max_length=10, choices=State, default=State.PLACED)
    tracking = models.CharField(max_length=20, blank=True)
