"""Contacts from attention maps without finetuning, and what each head attends to. docs/contacts.md has the protocol."""

from proteinlm import late

_MODULES = {
    "attention_on_contacts": "probe.contacts.heads",
    "evaluate": "probe.contacts.scoring",
    "evaluate_families": "probe.contacts.coevolution.evaluation",
    "fit": "probe.contacts.fitting",
    "head_view": "probe.contacts.view",
    "write_contacts": "probe.contacts.output",
}
__all__ = sorted(_MODULES)
__getattr__, __dir__ = late(__name__, _MODULES)
