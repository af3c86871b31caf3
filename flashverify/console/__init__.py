"""What a person sees in a terminal: progress, tables, the anatomy of one case."""
