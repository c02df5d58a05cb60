"""The outbox for Django. Only its place is kept here; the model, the commands and the worker follow."""
