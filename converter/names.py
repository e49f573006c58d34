"""Name tables, pure data: what one tensor or token is called in each neighbour's files."""

# Special tokens by role: pretraining vocabulary -> TAPE. Letters have the same name in both; [unused1] is ours alone.
PRETRAIN_TO_TAPE_TOKENS = {
    "[PAD]": "<pad>",
    "[MASK]": "<mask>",
    "[CLS]": "<cls>",
    "[SEP]": "<sep>",
    "[UNK]": "<unk>",
}
