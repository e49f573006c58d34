"""What the table is made of."""
