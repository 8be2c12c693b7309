"""Runners: run an artifact. One file per backend, behind the one `Runner` seam."""
