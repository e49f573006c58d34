"""What may pass although something was damaged, and what may stay although a command failed: each with its reason.

A rule is patterns (regular expressions, searched for) of the surface, the command and the damage, and the reason.
Nothing is here because it is hard to mend.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """reason: why what happens is right."""

    surface: str
    command: str
    damage: str
    reason: str

    def holds(self, surface: str, command: str, damage: str) -> bool:
        pairs = ((self.surface, surface), (self.command, command), (self.damage, damage))
        return all(re.search(pattern, text, re.DOTALL) for pattern, text in pairs)


PASSES: list[Rule] = []
LEFT: list[Rule] = []


def reason(rules: list[Rule], surface: str, command: str, damage: str) -> str:
    """The reason of the first rule that holds, or ""."""
    return next((rule.reason for rule in rules if rule.holds(surface, command, damage)), "")
