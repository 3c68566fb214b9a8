"""gunicorn: `gunicorn --preload -c gunicorn_conf.py gunicorn_app:app`."""

import os

preload_app = True
workers = 2
bind = os.environ.get("RECIPE_BIND", "127.0.0.1:8000")


def when_ready(server):
    """The application is loaded, and no worker is forked yet."""
    import cowbell_fork
    import gunicorn_app

    if not os.environ.get("RECIPE_PLAIN"):
        server.log.info("%s", cowbell_fork.freeze(gunicorn_app.data))
