from django.db import models


class Item(models.Model):
    name = models.CharField(max_length=50, unique=True)
    price = models.IntegerField(default=0)
    due = models.TimeField(null=True)
    facts = models.JSONField(default=dict)

    class Meta:
        app_label = "shop"
