"""Celery with its prefork pool: `celery -A celery_app worker`. The broker is a folder; yours is another."""

import os

from celery import Celery
from celery.signals import worker_init
from work import load, read

FOLDER = os.environ.get("RECIPE_FOLDER", "/tmp")
app = Celery("celery_app", broker="filesystem://", backend=f"file://{FOLDER}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{FOLDER}/queue", "data_folder_out": f"{FOLDER}/queue", "control_folder": f"{FOLDER}/control",
}
app.conf.broker_connection_retry_on_startup = True
app.conf.worker_prefetch_multiplier = 1

data = load(int(os.environ.get("RECIPE_COUNT", "1000000")))


@worker_init.connect
def before_the_pool(**_):
    """The worker's parent has loaded this module, and has not forked yet."""
    import cowbell_fork

    if not os.environ.get("RECIPE_PLAIN"):
        print(cowbell_fork.freeze(data))


@app.task
def job():
    return os.getpid(), read(data)
