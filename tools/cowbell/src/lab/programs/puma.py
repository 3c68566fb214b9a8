"""usage: puma.py plain|compact|warmup STRINGS WORKERS

A Puma server whose application is loaded before its workers are forked, and which collects garbage at each request. Before the fork:
nothing, GC.start and GC.compact, or Process.warmup.
"""
import os
import sys

import lab

CONFIGURATION = """
preload_app!
before_fork do
  case ENV.fetch('LAB_WAY')
  when 'compact'
    GC.start
    GC.compact
  when 'warmup'
    Process.warmup
  end
end
"""
APPLICATION = """
DATA = Array.new(Integer(ENV.fetch('LAB_STRINGS'))) { |n| ["a string of some length, number #{n}"] }
run(lambda do |_|
  GC.start
  total = DATA.sum { |row| row[0].length }
  [200, { 'Content-Type' => 'text/plain' }, ["#{Process.pid} #{total}"]]
end)
"""
way, strings, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
for name, content in (("puma.rb", CONFIGURATION), ("config.ru", APPLICATION)):
    with open(name, "w", encoding="ascii") as file:
        file.write(content)
folder = os.getcwd()
socket = lab.listening(folder)
path = os.path.join(folder, "socket")
bind = f"unix://{path}"
command = ["puma", "--quiet", "--workers", str(workers), "--threads", "1:1", "--bind", bind, "--config", "puma.rb", "config.ru"]
# Puma takes over a socket that it finds in these words, as it does when it restarts itself.
environment = dict(os.environ, LAB_WAY=way, LAB_STRINGS=strings, PUMA_INHERIT_0=f"{socket.fileno()}:{bind}", RACK_ENV="production")
server = lab.started(command, pass_fds=[socket.fileno()], env=environment)
answer = lab.ask_all(path, workers)
together = lab.together(server.pid)
lab.stopped(server)
lab.tell(answer=answer, together_bytes=together)
