"""The README's lines of Python, run as they stand in a folder that holds a small model directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

from toy_model import write_model

README = Path(__file__).parents[3] / "README.md"


def test_the_lines_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (lines,) = [block for block in blocks if "proteinlm.load" in block]
    assert lines.count("\n") <= 10
    write_model(tmp_path / re.search(r'proteinlm\.load\("(.+?)"', lines)[1])
    environment = {**os.environ, "PYTHONPATH": str(README.parent)}
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(2, 16)" in done.stdout  # two proteins, h of the small model
