"""The ground floor: the encoder, its tokenizer, and what every stage stands on."""
