import os

data = [str(number) for number in range(20_000)]
if os.fork() == 0:
    for x in data:
        pass
    os._exit(0)
os.wait()
