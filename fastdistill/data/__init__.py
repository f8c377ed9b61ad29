"""From text to batches: sources of text, corpora, tasks, packing."""
