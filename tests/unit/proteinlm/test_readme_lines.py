"""The README's lines of Python, run as they stand: with the model of that name, or else a small one in its place."""

import re
from pathlib import Path

import proteinlm

README = Path(__file__).parents[3] / "README.md"


def test_the_lines_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (lines,) = [block for block in blocks if "proteinlm.load" in block]
    assert lines.count("\n") <= 10
    name = re.search(r'proteinlm\.load\("(.+?)"', lines)[1]
    monkeypatch.chdir(tmp_path)
    if name not in proteinlm.models():
        from toy_esm import esm_model  # skips the test where transformers is not installed

        esm_model().save_pretrained(tmp_path / name)
    exec(lines, {})
    hidden = proteinlm.load(name, device="cpu").config.hidden_size
    assert f"(2, {hidden})" in capsys.readouterr().out  # two proteins
