"""What runs where a test says `python`: PYTHON SOCKET WORDS, the words handed to the server of warm_python.py.

Anything but `-m MODULE` and `FILE.py` is left to the real python.
"""

import json
import os
import signal
import socket
import struct
import sys

PASSED_ON = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
NUMBER = struct.Struct("q")


def run(python: str, place: str, words: list[str]) -> None:
    """End as the command does, in its time."""
    command = words[1:] if words[:1] == ["-u"] else words
    if not command or not (command[0] == "-m" or command[0].endswith(".py")):
        os.execv(python, [python, *words])
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(place)
        request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(link, [NUMBER.pack(len(request))], [0, 1, 2])
        link.sendall(request)
        (pid,) = NUMBER.unpack(link.recv(NUMBER.size))
        for number in PASSED_ON:
            signal.signal(number, lambda number, frame: os.kill(pid, number))
        (status,) = NUMBER.unpack(link.recv(NUMBER.size))
    if status < 0:
        if -status in PASSED_ON:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3:])
