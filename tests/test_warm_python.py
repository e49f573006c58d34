"""The `python` of warm_python.py ends, prints and dies as the real one does."""

import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys
print(sys.argv, sys.path[0], os.getcwd(), os.environ["OWN"], sys.stdin.read(), __name__)
print("a line", file=sys.stderr)
sys.exit(eval(sys.argv[1]))
"""
WAITS = """
import signal, sys, time
if len(sys.argv) > 1:
    signal.signal(signal.SIGTERM, lambda *call: sys.exit(5))
print("ready", flush=True)
time.sleep(60)
"""
STARTS = """
import subprocess, sys
print("torch" in sys.modules, flush=True)
if len(sys.argv) == 1:
    subprocess.run([sys.executable, "-m", "script", "again"])
"""


@pytest.fixture
def both(python, tmp_path):
    return [sys.executable, str(python)]


@pytest.mark.parametrize("ends", ["'a reason'", "os.kill(os.getpid(), 9)", "1 / 0", "os._exit(7)"])
@pytest.mark.parametrize("start", [["script.py"], ["-m", "script"], ["-u", "-m", "script"], ["-c", SCRIPT]])
def test_what_a_process_gets_and_gives(start, ends, both, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = [
        subprocess.run([path, *start, ends], cwd=tmp_path, env={"OWN": "é"}, input="in", capture_output=True, text=True)
        for path in both
    ]
    real, warm = done
    assert warm.returncode == real.returncode and warm.stdout.split() == real.stdout.split()
    lines = [result.stderr.splitlines() for result in done]  # a traceback has more frames
    assert lines[1] == lines[0] if ends != "1 / 0" else (lines[1][0], lines[1][-1]) == (lines[0][0], lines[0][-1])


@pytest.mark.parametrize(
    ("words", "number"), [([], signal.SIGTERM), (["catches"], signal.SIGTERM), ([], signal.SIGKILL)]
)
def test_a_signal_reaches_it(words, number, both, tmp_path):
    (tmp_path / "script.py").write_text(WAITS)
    statuses = []
    for path in both:
        with subprocess.Popen([path, "script.py", *words], cwd=tmp_path, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            assert process.stdout.read() == b""  # the end: who else had it is gone too
            statuses.append(process.wait(10))
    assert statuses[0] == statuses[1]


def test_what_it_starts_is_warm_and_the_real_one_is_not(both, tmp_path):
    (tmp_path / "script.py").write_text(STARTS)
    answers = [
        subprocess.run([path, "script.py"], cwd=tmp_path, capture_output=True, text=True).stdout for path in both
    ]
    assert [answer.split() for answer in answers] == [["False", "False"], ["True", "True"]]
