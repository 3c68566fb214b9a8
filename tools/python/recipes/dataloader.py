"""PyTorch's DataLoader over objects.   usage: python3 dataloader.py [--plain] [COUNT]

Its workers inherit the dataset where they are forked: the default until 3.13, and asked for here. It is not one of the
recipes that tests run, because PyTorch takes gigabytes.
"""

import os
import sys

import cowbell_fork
from torch.utils.data import DataLoader, Dataset
from work import load, private_dirty_mib, show

before = 0.0


class Rows(Dataset):
    def __init__(self, data):
        self.data, self.keys = data, list(data)

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, at):
        number, text, real = self.data[self.keys[at]]
        return number * real + len(text)


def begin(worker):
    global before
    before = private_dirty_mib()


def collate(values):
    """What a worker sends for a batch: here what it copied so far."""
    return os.getpid(), private_dirty_mib() - before


if __name__ == "__main__":
    dataset = Rows(load(next((int(arg) for arg in sys.argv[1:] if arg.isdigit()), 1_000_000)))
    if "--plain" not in sys.argv:
        cowbell_fork.freeze(dataset)  # before the loader starts its workers
    loader = DataLoader(
        dataset, batch_size=10_000, shuffle=True, num_workers=2, multiprocessing_context="fork",
        worker_init_fn=begin, collate_fn=collate,
    )
    show("DataLoader, " + ("plain" if "--plain" in sys.argv else "frozen"), dict(loader))
