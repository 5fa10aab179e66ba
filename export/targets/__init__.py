"""One file per target. Nothing is imported here: each target brings its own heavy packages."""
