"""usage: third_party.py networkx|pandas|numpy|django|nltk plain|frozen: what a child copies of a package's data, and what it makes anew.

By hand, with these packages installed; docs/PYTHON.md has what it printed.
"""

from __future__ import annotations

import sys

import cowbell_fork
from kit import in_child


def networkx():
    import networkx

    data = networkx.Graph()
    data.add_weighted_edges_from((f"n{i}", f"n{(i * 7 + k) % 60000}", k * 0.5) for i in range(60_000) for k in range(4))
    return data, lambda: (
        sum(edge["weight"] for _, _, edge in data.edges(data=True)),
        len(networkx.single_source_shortest_path_length(data, "n1")),
    )


def pandas():
    import pandas

    texts = pandas.Series([f"text {i}" for i in range(400_000)], dtype=object)
    data = pandas.DataFrame({"text": texts, "number": range(400_000)})
    return data, lambda: (sum(map(len, data["text"])), data["number"].sum(), data["text"].str.len().sum())


def numpy():
    import numpy

    data = numpy.array([f"text {i}" for i in range(400_000)], dtype=object)
    return data, lambda: sum(map(len, data))


def django():
    import django
    from django.conf import settings

    settings.configure(INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"], USE_TZ=True)
    django.setup()
    from django.contrib.auth.models import User

    data = {i: User(id=i, username=f"user {i}", email=f"{i}@example.org") for i in range(40_000)}
    return data, lambda: (sum(len(user.username) + len(user.email) for user in data.values()), str(data[7]))


def nltk():
    from nltk import FreqDist, ngrams

    data = FreqDist(ngrams([f"word {i % 30_000}" for i in range(300_000)], 2))
    return data, lambda: (sum(data.values()), data.most_common(3))


def main():
    name, how = sys.argv[1:]
    data, use = globals()[name]()
    use()  # what the package computes once
    if how == "frozen":
        print(cowbell_fork.freeze(data), "\n")
    cowbell_fork.count_copies()

    def child():
        with cowbell_fork.watch() as block:
            use()
        return [block.copied.bytes / (1 << 20), block.copied.new / (1 << 20)]

    copied, new = in_child(child)
    print(f"{name}, {how}: {copied:.1f} MiB copied, {new:.1f} MiB of new memory")


if __name__ == "__main__":
    main()
