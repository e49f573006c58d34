"""The launch scripts of several processes and nodes, run here on CPUs with gloo.

Several nodes: two torchrun agents on this machine, each as one node's script starts it. mpirun: Debian's Open MPI,
where it is installed. Slurm: NOT a real cluster: `srun`, `scontrol` and `scancel` are stand-ins on PATH that record how
they are called; srun's starts the command once a node, here, and scancel's signals every process of those.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import kill_torchrun
import pytest

from pretrain.checkpoint import files as checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 240
# A node's task is a process group of its own, which scancel signals whole. At a SIGTERM of its own srun kills them, as
# Slurm 22.05's did ("forcing job termination").
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$RECORD"
while [[ $1 == --* ]]; do shift; done
pids=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
    SLURM_NODEID=$node setsid "$@" &
    pids+=($!)
done
printf '%s\\n' "${pids[@]}" > "$RECORD.tasks"
trap 'kill -KILL -- "${pids[@]/#/-}"' TERM
worst=0
for pid in "${pids[@]}"; do
    status=0
    wait "$pid" || status=$?
    ((status > worst)) && worst=$status
done
exit "$worst"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$RECORD"
if [ "$1 $2" = "show hostnames" ]; then printf '127.0.0.1\\nnode1\\n'; fi
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >> "$RECORD"
while read -r pid; do kill -TERM -- "-$pid"; done < "$RECORD.tasks"
"""


@pytest.fixture
def job(tmp_path, python):
    """(command line, variables) -> a started script, with a tiny model's flags; nothing of it is left at the end.

    warm: by the `python` that starts at once, whose processes are in no group of the script's.
    """
    corpus = kill_torchrun.make_corpus(tmp_path)
    started = []

    def start(words: list[str], iterations: int, warm: bool = True, **variables: str) -> subprocess.Popen:
        flags = [
            *kill_torchrun.TINY,
            "--pipeline-model-parallel-size",
            "2",
            "--train-iters",
            str(iterations),
            "--lr-decay-iters",
            str(iterations),
        ]
        words = [*words, corpus[1], str(tmp_path / "save"), *flags]
        path = f"{tmp_path}:{(python if warm else Path(sys.executable)).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
        with (tmp_path / f"log{len(started)}").open("wb") as log:
            job = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
        started.append(job)
        return job

    yield start
    for process in started:
        left = descendants(process.pid)
        if process.poll() is None:
            process.kill()
        process.wait()
        for pid in filter(kill_torchrun.is_alive, left):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    below = kill_torchrun.children(pid)
    return [*below, *(further for child in below for further in descendants(child))]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def ended(jobs: list[subprocess.Popen], folder: Path) -> dict:
    """exit_reason.json, once all jobs ended with 0. Two processes took part: each held a stage of the pipeline."""
    for number, job in enumerate(jobs):
        assert job.wait(TIMEOUT_S) == 0, (folder / f"log{number}").read_text()[-3000:]
    reason = json.loads((folder / "save/exit_reason.json").read_text())
    iteration, meta = checkpoint.load_meta(folder / "save")
    assert iteration == reason["iteration"]
    assert meta["layout"]["pp"] == 2
    return reason


def script(name: str) -> str:
    return str(ROOT / "scripts" / name)


def stand_in(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def slurm(job, folder: Path, iterations: int, warm: bool) -> subprocess.Popen:
    """The batch script, as Slurm would start it for a job of two nodes."""
    stand_in(folder, "srun", SRUN)
    stand_in(folder, "scontrol", SCONTROL)
    stand_in(folder, "scancel", SCANCEL)
    variables = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_SUBMIT_DIR": str(ROOT)}
    number = str(10000 + int(free_port()) % 10000)
    variables |= {"SLURM_JOB_ID": number, "GPUS_PER_NODE": "1", "RECORD": str(folder / "record")}
    return job(["bash", script("pretrain_slurm.sbatch")], iterations, warm, **variables)


def test_two_nodes_meet_through_torchrun(job, tmp_path):
    variables = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GPUS_PER_NODE": "1"}
    words = ["bash", script("pretrain_multinode.sh")]
    nodes = [job(words, 3, NODE_RANK=rank, **variables) for rank in ("0", "1")]
    assert ended(nodes, tmp_path) == {"reason": "completed", "iteration": 3}


def test_mpirun_starts_the_processes(job, tmp_path):
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed (Debian: openmpi-bin)")
    words = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2", "bash", script("pretrain_mpirun.sh")]
    assert ended([job(words, 3, MASTER_PORT=free_port())], tmp_path) == {"reason": "completed", "iteration": 3}


def test_slurm_job_of_two_nodes_completes(job, tmp_path):
    """With stand-ins for Slurm's commands."""
    assert ended([slurm(job, tmp_path, 3, warm=True)], tmp_path) == {"reason": "completed", "iteration": 3}
    record = (tmp_path / "record").read_text()
    assert "scontrol show hostnames node[0-1]" in record and "srun --ntasks-per-node=1" in record
    assert "requeue" not in record


def test_preempted_slurm_job_saves_and_is_queued_again(job, tmp_path):
    """SIGTERM to the batch script alone, as `--signal=B:TERM@120` sends it. With stand-ins for Slurm's commands."""
    batch = slurm(job, tmp_path, 100000, warm=False)
    metrics, deadline = tmp_path / "save/metrics.jsonl", time.monotonic() + TIMEOUT_S
    while not (metrics.exists() and metrics.read_text().count("\n") > 2):
        assert time.monotonic() < deadline and batch.poll() is None, (tmp_path / "log0").read_text()[-3000:]
        time.sleep(0.1)
    batch.send_signal(signal.SIGTERM)
    reason = ended([batch], tmp_path)
    assert reason["reason"] == "preempted" and reason["iteration"] > 2
    record = (tmp_path / "record").read_text()
    assert "scancel --signal=TERM 1" in record and "scontrol requeue 1" in record
