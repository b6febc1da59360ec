"""One file for each kind of source; each yields rows (dicts of `FEATURES`) or `Rejected` records."""
