"""The whole road in minutes: ingest, train, move, generate, report. What `fmscale quickstart` runs."""
