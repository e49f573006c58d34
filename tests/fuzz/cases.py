"""Case n of seed s: surface, command and damage, drawn from both numbers and nothing else."""

import contextlib
import io
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from fuzz import mutate
from fuzz.process import Job, program
from fuzz.surfaces import SURFACES, Surface, named_inputs, words_of

FLAGS = 0.15  # share of the cases in which the words of the command are damaged, and no file


@dataclass(frozen=True)
class Case:
    """line: the command as in fuzz.surfaces; damaged: whether anything is."""

    seed: int
    number: int
    surface: Surface
    line: str
    damaged: bool = True

    @property
    def name(self) -> str:
        return f"{self.seed}:{self.number}"

    @property
    def module(self) -> str:
        return words_of(self.line)[0]

    def job(self, inputs: Path, directory: Path) -> Job:
        """What to run; the child writes what it damaged to directory/damage."""
        module, words = words_of(self.line)

        def prepare() -> list[str]:
            for name in named_inputs(words, sorted(os.listdir(inputs))):
                copy = shutil.copytree if (inputs / name).is_dir() else shutil.copy
                copy(inputs / name, name)
            changed, what = damage(self) if self.damaged else (words, "nothing")
            (directory / "damage").write_text(what)
            return changed

        return Job(self.number, directory, program(module), prepare, self.surface.cpu)


def draw(seed: int, number: int) -> Case:
    rng = random.Random(f"{seed}:{number}")
    surface = rng.choices(SURFACES, [surface.weight for surface in SURFACES])[0]
    return Case(seed, number, surface, rng.choice(surface.commands))


def damage(case: Case) -> tuple[list[str], str]:
    """Damage the copies in the working directory, or the words; (words, what was done)."""
    rng = random.Random(f"damage {case.name}")
    module, words = words_of(case.line)
    root = Path()
    victims = sorted({path for pattern in case.surface.victims for path in root.glob(pattern) if path.is_file()})
    if not victims or rng.random() < FLAGS:
        return mutate.damage_words(rng, words, flags_of(module, words))
    folder = rng.choice(sorted({path.parent for path in victims}))
    victim = rng.choice([path for path in victims if path.parent == folder])
    others = sorted(path for path in root.rglob("*") if path.is_file() and path != victim)
    return words, f"{victim} {mutate.damage_one(rng, victim, others or [victim])}"


def flags_of(module: str, words: list[str]) -> list[str]:
    """All flags of a command, as its --help lists them."""
    start = [*words[:1], "--help"] if module == "probe.__main__" else ["--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        program(module)(start)
    return mutate.flags_of(text.getvalue()) or ["--help"]
