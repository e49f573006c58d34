"""Where a run of the demo keeps its files, and what it finetunes from: run writes there, report reads."""

from dataclasses import dataclass
from pathlib import Path

STARTS = ("pretrained", "random")  # the weights that finetuning starts from


@dataclass(frozen=True)
class Paths:
    """Everything under the output directory."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def shard(self) -> Path:
        return self.root / "shards" / "corpus"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def run(self, task: str, start: str) -> Path:
        return self.root / "runs" / f"{task}-{start}"
