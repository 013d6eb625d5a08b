"""What kernelmux keeps on disk: whole-file writes, locks and the measurement journal."""
