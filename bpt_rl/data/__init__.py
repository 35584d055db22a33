"""From files to batches; everything past this package knows `Episode` only."""
