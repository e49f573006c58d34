"""What the flags of `proteinlm` may say, known before torch is imported.

What must hold: POOLINGS are the keys of probe.embeddings', HEADS those of probe.probes.heads, SCORES those of
probe.variants.scoring (tests/test_commands.py).
"""

PRETRAINED, RANDOM, ONE_HOT, COMPOSITION = ARMS = ("pretrained", "random", "one_hot", "composition")
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
POOLINGS = ("mean", "max", "min", "first")
TOO_LONG = ("error", "crop", "window")
HEADS = ("cnn", "logistic", "mlp", "lstm", "fnn", "light_attention")
METRICS = ("euclidean", "cosine")
SCORES = ("masked-marginals", "wt-marginals", "masked-marginals-together", "mutant-marginals")
SCORES += ("pppl", "pppl-esm", "pll-difference")
ENSEMBLE = "ensemble"  # the mean of several models
WINDOW = 1024  # tokens: ESM-1b's and ESM-1v's limit, and ProteinGym's for all models
CHAINS = 20  # that ESM's contact regression was fitted on
MEMBERS = 200  # of a family, that co-evolution is counted on
THRESHOLD = 0.3  # of attention that counts; provis' --min-attn
