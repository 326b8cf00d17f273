"""One small typed class a service, over ``clients.session``, which alone speaks HTTP."""
