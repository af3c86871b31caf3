"""Campaigns: many cases and checks on one machine, in worker processes; a crash costs one case."""
