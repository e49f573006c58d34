"""What tape-embed is made of."""
