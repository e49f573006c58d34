"""From files of proteins to packed, masked batches: sequences -> indexed -> packing -> masking -> loader."""
