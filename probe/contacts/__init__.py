"""Contacts from attention maps without finetuning, and what each head attends to. docs/contacts.md has the protocol."""

from probe.contacts.fitting import fit
from probe.contacts.heads import attention_on_contacts
from probe.contacts.output import write_contacts
from probe.contacts.scoring import evaluate
from probe.contacts.view import head_view

__all__ = ["attention_on_contacts", "evaluate", "fit", "head_view", "write_contacts"]
