"""What tape-train is made of."""
