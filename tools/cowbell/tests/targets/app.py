"""A web application that loads its data before the workers are forked, and reads it in each request."""
import os

DATA = [str(i) for i in range(100_000)]


def application(environ, start_response):
    n = 0
    for x in DATA:
        n += len(x)
    body = b"%d %d\n" % (n, os.getpid())
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
