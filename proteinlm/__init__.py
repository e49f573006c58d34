"""The encoder, for Python: a model directory opened, proteins in, vectors, logits and hidden states out.

    import proteinlm

    encoder = proteinlm.load("model")                # what `python -m converter --target tape` wrote
    vectors = encoder.embed(["MKV", "MKVLA"])        # numpy float32 [2, h]

Pretraining, conversion and finetuning use the modules of this package too: network, tokenizers, readers of files. A
name below is imported when it is first used, so that what needs no torch does not wait for it.
"""

import importlib
import sys
from collections.abc import Callable, Mapping


def late(package: str, modules: Mapping[str, str]) -> tuple[Callable, Callable]:
    """__getattr__ and __dir__ of a package whose names, each of the module it stands for, are imported at first use.

    A name that is a module's own (`tape.models`) stands for that module.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(modules[name])
        value = module if modules[name] == f"{package}.{name}" else getattr(module, name)
        vars(sys.modules[package])[name] = value
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *modules})


_MODULES = {
    "Encoder": "proteinlm.encoder",
    "InputError": "proteinlm.errors",
    "ModelConfig": "proteinlm.network.config",
    "ProteinBert": "proteinlm.network.model",
    "TAPETokenizer": "proteinlm.tokenizer",
    "Tokenizer": "proteinlm.tokenizer",
    "build_tokenizer": "proteinlm.tokenizer",
    "load": "proteinlm.model_dir.load",
    "models": "proteinlm.model_dir.find",
}
__all__ = sorted(_MODULES)
__getattr__, __dir__ = late(__name__, _MODULES)
