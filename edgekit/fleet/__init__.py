"""Fleets: deploy and update devices."""
