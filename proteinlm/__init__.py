"""The encoder, for Python: a model directory opened, proteins in, vectors, logits and hidden states out.

    import proteinlm

    encoder = proteinlm.load("model")                # what `python -m converter --target tape` wrote
    vectors = encoder.embed(["MKV", "MKVLA"])        # numpy float32 [2, h]

Pretraining, conversion and finetuning use the modules of this package too: network, tokenizers, readers of files. A
name below is imported when it is first used, so that what needs no torch does not wait for it.
"""

import importlib

_MODULES = {
    "Encoder": "proteinlm.encoder",
    "InputError": "proteinlm.errors",
    "ModelConfig": "proteinlm.network.config",
    "ProteinBert": "proteinlm.network.model",
    "TAPETokenizer": "proteinlm.tokenizer",
    "Tokenizer": "proteinlm.tokenizer",
    "build_tokenizer": "proteinlm.tokenizer",
    "load": "proteinlm.model_dir.load",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
