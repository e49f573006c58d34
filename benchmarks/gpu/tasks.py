"""Stage `tasks`: TAPE's five tasks from pretrained and from random weights, as far as the minutes reach.

    python benchmarks/gpu/tasks.py OUT --tape-data DIR [--model DIR] [--preset full] [--jobs 4]

`tape.reproduce` into OUT/tasks; called again it skips what is done and goes on. Needs the package lmdb.
"""

import importlib.util
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.gpu.stage import Stage, parser, words_of

REPORT = 40.0  # seconds for the page


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--tape-data", type=Path, required=True, help="the tasks' folders (scripts/download_data.sh)")
    flags.add_argument("--model", type=Path, help="a TAPE model directory (OUT/pretrain/model)")
    flags.add_argument("--preset", default="full", help="of tape.reproduce (full)")
    flags.add_argument("--jobs", type=int, default=4, help="runs side by side on the GPU (4)")
    flags.add_argument("--tasks-flags", help="further flags of tape.reproduce, in one word: '--seeds 0 --tasks ...'")
    args = flags.parse_args()
    model = (args.model or args.out / "pretrain/model").resolve()
    if importlib.util.find_spec("lmdb") is None:
        flags.error("stage tasks reads LMDBs and needs the package lmdb, which is not installed")
    if not (model / "config.json").exists():
        flags.error(f"{model} is no model directory: run stage pretrain before, or give --model")
    stage, folder = Stage("tasks", args), args.out.resolve() / "tasks"
    words = ["-m", "tape.reproduce", model, args.tape_data.resolve(), folder, "--arms", "pretrained", "random"]
    words += ["--preset", args.preset, "--jobs", args.jobs, "--device", args.device, *words_of(args.tasks_flags)]
    ends = stage.ends
    stage.ends -= REPORT * (0.5 if args.rehearse else 1)
    stage.run(*words)
    stage.ends = ends
    if not (folder / "results.json").exists() or stage.result["not_run"]:
        stage.run(*words, "--report_only", least=5)
    if (folder / "results.json").exists():
        stage.add(model=str(model), results=json.loads((folder / "results.json").read_text()))
        stage.add(table=(folder / "table.md").read_text())
    return 0 if "results" in stage.result else 1


if __name__ == "__main__":
    sys.exit(main())
