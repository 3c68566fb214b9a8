"""usage: redis.py idle|writes KEYS

A Redis server with so many keys of 400 bytes, which saves in a forked child (BGSAVE) while nobody writes, or while each key is overwritten.
"""
import os
import socket
import subprocess
import sys

import lab


class Redis:
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(lab.PATIENCE)
        self.socket.connect(path)
        self.lines = self.socket.makefile("rb")

    def send(self, *words):
        words = [word if isinstance(word, bytes) else word.encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))

    def reply(self):
        line = self.lines.readline()
        if line.startswith(b"$"):
            return self.lines.read(int(line[1:]) + 2)
        if not line or line.startswith(b"-"):
            raise SystemExit(f"redis answered {line!r}")
        return line

    def ask(self, *words):
        self.send(*words)
        return self.reply()

    def fill(self, keys, value):
        for begin in range(0, keys, 100):
            for key in range(begin, begin + 100):
                self.send("SET", f"key:{key}", value)
            for _ in range(100):
                self.reply()


def saves(redis):
    return b"rdb_bgsave_in_progress:1" in redis.ask("INFO", "persistence")


way, keys = sys.argv[1], int(sys.argv[2])
path = os.path.join(os.getcwd(), "socket")
# A save of so many keys would be over at once: the delay, in microseconds a key, leaves time to write beside it.
command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", os.getcwd(), "--rdb-key-save-delay", "20"]
server = lab.started(command, stdout=subprocess.PIPE, text=True)
lab.wait_for(server.stdout, "ready to accept connections")
redis = Redis(path)
redis.fill(keys, b"a" * 400)
redis.ask("BGSAVE")
if way == "writes":
    redis.fill(keys, b"b" * 400)
was_saving = b"rdb_bgsave_in_progress:1" in redis.ask("INFO", "persistence")
lab.wait_for(server.stdout, "background saving terminated with success")
redis.send("SHUTDOWN", "NOSAVE")
if server.wait(lab.PATIENCE) != 0:
    sys.exit(f"redis ended with {server.returncode}")
if not was_saving:
    sys.exit("the save was over too soon to be written beside it")
lab.tell(keys=keys)
