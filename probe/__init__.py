"""What a pretrained encoder knows, asked without finetuning: the package of the command `proteinlm`.

    from probe import variants

    variants.score(encoder, wild_type, ["H24C", "H24C:P25A"])         # encoder: of proteinlm.load

It stands on proteinlm (the encoder) and on tape (metrics, intervals, flags).
"""
