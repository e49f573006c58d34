"""Contacts of the large families of a corpus: what co-evolution says of them, beside an encoder (docs/contacts.md)."""
