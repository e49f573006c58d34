"""The README's lines of Python, run as they stand in a folder that holds a small model directory."""

import re
from pathlib import Path

from toy_model import write_model

README = Path(__file__).parents[3] / "README.md"


def test_the_lines_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (lines,) = [block for block in blocks if "proteinlm.load" in block]
    assert lines.count("\n") <= 10
    write_model(tmp_path / re.search(r'proteinlm\.load\("(.+?)"', lines)[1])
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert "(2, 16)" in capsys.readouterr().out  # two proteins, h of the small model
