"""The network as single-device maths: its configuration, layers, attention over packed proteins, and the encoder."""
