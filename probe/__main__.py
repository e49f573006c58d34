"""The command `proteinlm VERB ...` (also `python -m probe VERB ...`). A verb's module is imported when it is called.

proteinlm probe MODEL DATA                              small heads on frozen embeddings
proteinlm contacts MODEL IN.fasta OUT.npz               contacts from attention maps
proteinlm project MODEL PROTEINS.csv                    a map of proteins with numbers; labels from neighbours
proteinlm variants MODEL WT.fasta MUTATIONS.csv         mutations scored by the language model itself
proteinlm models                                        what MODEL may be by name
"""

import importlib
import sys
from collections.abc import Sequence
from functools import partial

from proteinlm import errors
from proteinlm.errors import InputError, did_you_mean

VERBS = {  # verb -> (module whose `main(argv)` runs it, its line in --help)
    "probe": ("probe.probes.command", "train small heads on frozen embeddings, and score them"),
    "contacts": ("probe.contacts.command", "contacts from attention maps, and what heads attend to"),
    "project": ("probe.projection.command", "draw proteins in two dimensions; labels from nearest neighbours"),
    "variants": ("probe.variants.command", "score the mutations of a protein, or scan all of them"),
    "models": ("probe.models", "list the models that can be had by name"),
}


def usage() -> str:
    lines = [f"  {verb:<10} {line}" for verb, (_, line) in VERBS.items()]
    return "\n".join(["usage: proteinlm VERB ...", "", *lines, "", "proteinlm VERB --help lists a verb's flags"])


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else errors.EXIT_USAGE
    if words[0] not in VERBS:
        hint = did_you_mean(words[0], VERBS) or f"; should be one of {', '.join(VERBS)}"
        raise InputError(f"proteinlm {words[0]}: no such verb{hint}")
    return importlib.import_module(VERBS[words[0]][0]).main(words[1:])


cli = partial(errors.run, main, resumes=True)  # the console command


if __name__ == "__main__":
    sys.exit(cli())
