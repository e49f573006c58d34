"""A fuzzer of every surface that a user hands files or flags to: `make fuzz MINUTES=10 SEED=0`.

    surfaces.py   what is damaged, and the command lines that read it
    inputs.py     valid inputs of every kind, made once
    mutate.py     ways to damage any file: its bytes, the file itself, the words of a command line
    trees.py      ways to damage what a file holds: keys, values, types, shapes
    texts.py      text: JSON, YAML, tables, FASTA, Python's code
    formats.py    every other kind of file, and which is which
    cases.py      case n of seed s: surface, command, damage; a pure function of both numbers
    process.py    a command in a forked child of a warm parent, with limits on time, memory and file size
    verdict.py    what came of it: ok, clear, or one of the classes that are defects; causes
    record.py     what was seen, and the sum of several runs
    defended.py   what may pass or stay although something was damaged, each with its reason

What must hold: a case is repeated by its two numbers (`make fuzz CASE=seed:number`); the inputs are never written to,
each case works on a copy.
"""
