"""usage: fuzz_causes.py SECONDS [SEED]: bytes of frozen objects and arrays are changed in children, and each page must be told for that."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import sys
import time

import cowbell_fork

PAGE = mmap.PAGESIZE


def word(at):
    return ctypes.c_size_t.from_address(at).value


def is_shared(at):
    """Whether another process has the page as well."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(at // PAGE * 8)
        return not int.from_bytes(file.read(8), "little") >> 56 & 1


def pieces(one):
    """Places where the data has bytes of its own that nothing looks at meanwhile: kind, address, bytes."""
    if type(one) is list and one:
        yield "arrays", word(id(one) + 24), 8 * len(one)
    elif type(one) is str and one.isascii() and len(one) > 20:
        yield "objects", id(one) + 40, len(one)
    elif type(one) is bytes and len(one) > 20:
        yield "objects", id(one) + 32, len(one)
    elif type(one) is float:
        yield "objects", id(one) + 16, 8
    elif type(one) is tuple and one:
        # From 3.14 on it keeps its hash before the items.
        yield "objects", id(one) + (24 if sys.version_info < (3, 14) else 32), 8 * len(one)


def one_round(seed):
    rng = random.Random(seed)
    made = []
    for _ in range(rng.randrange(2000, 20_000)):
        kind = rng.randrange(6)
        length = rng.choice((1, 3, 30, 100, 600))
        if kind == 0:
            made.append([None] * length)
        elif kind == 1:
            made.append("x" * (20 + length) + str(rng.random()))
        elif kind == 2:
            made.append(bytes(rng.randrange(256) for _ in range(21)) * length)
        elif kind == 3:
            made.append(rng.random())
        elif kind == 4:
            made.append(tuple([rng.random() for _ in range(length % 50 + 1)]))
        else:
            made.append({str(n): rng.random() for n in range(length)})
    # Holes between, and objects that stay and are not frozen.
    rng.shuffle(made)
    cut = len(made) // 3
    mortal, _, data = made[:cut], made[cut : 2 * cut], made[2 * cut :]
    del made, _
    cowbell_fork.freeze(data, hashes=rng.random() < 0.5)
    cowbell_fork.count_copies(explain=True)
    places = [place for one in data for place in pieces(one)]
    chosen = rng.sample(places, min(len(places), rng.randrange(1, 300)))
    writes = [(kind, at + rng.randrange(size)) for kind, at, size in chosen]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            memset = ctypes.memset
            # Where the parent has written meanwhile, the child's page is its own, and no copy.
            writes = [(kind, byte, ctypes.c_ubyte.from_address(byte).value ^ 0x40) for kind, byte in writes if is_shared(byte)]
            expected = {}
            for kind, byte, value in writes:
                memset(byte, value, 1)
                if expected.get(byte // PAGE) != "objects":
                    expected[byte // PAGE] = kind
            counts = [sum(one == kind for one in expected.values()) for kind in ("arrays", "objects")]
            found = cowbell_fork.copied().causes
            # Put back: nothing reads what is wrong, and nothing has changed then.
            for _, byte, value in writes:
                memset(byte, value ^ 0x40, 1)
            after = cowbell_fork.copied().causes
            said = [found.arrays // PAGE, found.objects // PAGE, after.arrays // PAGE, after.objects // PAGE, counts]
            os.write(writer, json.dumps(said).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    said = os.read(reader, 1000)
    os.close(reader)
    assert os.waitpid(pid, 0)[1] == 0, seed
    arrays, objects, arrays_after, objects_after, expected = json.loads(said)
    # A page that an array has to itself stays one that was written.
    assert [arrays, objects] == expected, (seed, said)
    assert arrays_after <= arrays and objects_after <= objects, (seed, said)
    del mortal
    return sum(expected)


def main():
    seconds = float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    end, rounds, pages = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        pages += one_round(seed + rounds)
        rounds += 1
    print(f"{rounds} rounds, {pages:,} pages, each told for what was changed on it")


if __name__ == "__main__":
    main()
