"""usage: executor.py sent|global|dict|freeze EDGES WORKERS

A ProcessPoolExecutor over a graph: each worker adds up the degrees of the neighbours of its part of the vertices. networkx's graph is
sent to the workers or inherited; a plain dict of lists is inherited, or made immortal.
"""
import concurrent.futures
import multiprocessing
import sys

import lab


def degrees(graph, part):
    """The vertices are those at part, part + PARTS, ...; a dict's values are lists, networkx's are dicts of the same vertices."""
    adjacent = graph if isinstance(graph, dict) else graph._adj
    vertices = sorted(adjacent)[part::PARTS]
    found = sum(len(adjacent[other]) for vertex in vertices for other in adjacent[vertex])
    meeting.work_is_done()
    return found


def of_argument(job):
    return degrees(*job)


def of_global(part):
    return degrees(GRAPH, part)


def load(name, way):
    with open(name, encoding="ascii") as file:
        edges = (tuple(map(int, line.split())) for line in file)
        return graph_of(edges, way)


def graph_of(edges, way):
    if way in ("sent", "global"):
        import networkx

        return networkx.Graph(edges)
    graph = {}
    for a, b in edges:
        graph.setdefault(a, []).append(b)
    if way == "freeze":
        lab.freeze(graph)
    return graph


if __name__ == "__main__":
    way, name, PARTS = sys.argv[1], sys.argv[2], int(sys.argv[3])
    GRAPH = load(name, way)
    context = multiprocessing.get_context("fork")
    meeting = lab.Meeting(context, PARTS)
    with concurrent.futures.ProcessPoolExecutor(PARTS, context) as pool:
        if way == "sent":
            found = pool.map(of_argument, [(GRAPH, part) for part in range(PARTS)])
        else:
            found = pool.map(of_global, range(PARTS))
        together = meeting.weigh()
        lab.tell(answer=str(sum(found)), together_bytes=together)
