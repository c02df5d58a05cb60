"""What handlers write down about themselves."""

from django.db import models


class Run(models.Model):
    """One run of a handler. *beside*: runs that had begun and not ended when this one began, itself included."""

    queue = models.CharField(max_length=255)
    number = models.IntegerField()
    process = models.IntegerField()
    beside = models.IntegerField(default=0)
    ended = models.BooleanField(default=False)
