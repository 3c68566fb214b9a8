"""An application that answers with what its worker copied while it read the data."""

import os

from work import load, read

data = load(int(os.environ.get("RECIPE_COUNT", "1000000")))


def app(environ, start_response):
    body = f"{os.getpid()} {read(data):.2f}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
