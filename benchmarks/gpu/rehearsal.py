"""What `gpu.sh --rehearse` feeds its stages: a FASTA whose headers name families, five tiny tasks, a preset of steps.

python benchmarks/gpu/rehearsal.py FOLDER       # FOLDER/{corpus.fasta,tasks/,preset.yaml}, from the demo's world
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from demo.budget import BUDGETS
from demo.datasets import CORPUS, write_world
from demo.synthetic import build_world

PRESET = """# two steps a run
all: {recipe: none, batch_size: 4, max_steps: 2, eval_steps: 2, patience: -1, learning_rate: 1.0e-3, seeds: [0]}
contact_prediction: {head: tape}
"""


def main() -> int:
    folder = Path(sys.argv[1])
    if not (folder / "corpus.fasta").exists():
        budget = BUDGETS["small"]
        write_world(folder / "tasks", build_world(budget.world, 0), budget.tasks, 0)
        text = (folder / "tasks" / CORPUS).read_text()
        (folder / "preset.yaml").write_text(PRESET)
        named = re.sub(r"^>(\S+) family=(\d+).*", lambda m: f">{m[1]} PF{int(m[2]):05}", text, flags=re.MULTILINE)
        (folder / "corpus.fasta").write_text(named)
    return 0


if __name__ == "__main__":
    sys.exit(main())
