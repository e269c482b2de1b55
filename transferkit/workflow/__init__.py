"""The steps of a run, each a function that a verb of `transferkit.api` calls; arithmetic lives in the folders below."""
