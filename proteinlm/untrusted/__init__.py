"""Opens files from elsewhere (pickles, torch files, distributed checkpoints) without running what is in them."""
