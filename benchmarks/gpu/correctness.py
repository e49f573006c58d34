"""Stage `correctness`: the tests marked `gpu`, each with its outcome.

    python benchmarks/gpu/correctness.py OUT        # OUT/correctness.json, OUT/correctness.log

Attention backends against fp64, forward and backward; dropout; a step without a host synchronisation; twenty steps in
every precision, eager and compiled, beside the CPU's; repeated and resumed runs bit for bit; embeddings. Without a GPU
(--rehearse) those that can run on a CPU do, the others are skipped.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.comparison import ROOT
from benchmarks.gpu.stage import Stage, parser


def test_files() -> list[str]:
    """Those with a test marked `gpu`: the others may need packages that are not here."""
    files = sorted((ROOT / "tests/unit").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "mark.gpu" in path.read_text()]


def outcomes(junit: Path) -> list[dict]:
    """Of each test: name, outcome, seconds, and the first line of what went wrong."""
    rows = []
    for case in ElementTree.parse(junit).iter("testcase"):
        children = {child.tag: child.get("message") or "" for child in case}
        outcome = next((kind for kind in ("failure", "error", "skipped") if kind in children), "passed")
        row = {"test": f"{case.get('classname')}::{case.get('name')}", "outcome": outcome}
        row["seconds"] = float(case.get("time") or 0)
        rows.append(row | ({"why": children[outcome].splitlines()[0][:300]} if children.get(outcome) else {}))
    return rows


def main() -> int:
    args = parser(__doc__).parse_args()
    stage = Stage("correctness", args)
    junit, log = args.out.resolve() / "junit.xml", args.out / "correctness.log"
    tests: list[dict] = []
    log.write_text("")
    for file in test_files():
        words = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={junit}"]
        done = stage.run(*words, *(["--gpu-tests-on-cpu"] if args.rehearse else []), file, least=10)
        if done is None:
            continue
        with log.open("a") as text:
            text.write(done.stdout)
        if junit.exists():
            tests += outcomes(junit)
            junit.unlink()
            stage.add(counts=dict(Counter(test["outcome"] for test in tests)), tests=tests)
    counts = Counter(test["outcome"] for test in tests)
    print(f"correctness: {dict(counts)}")
    return 1 if counts["failure"] or counts["error"] or not counts["passed"] or stage.result["not_run"] else 0


if __name__ == "__main__":
    sys.exit(main())
