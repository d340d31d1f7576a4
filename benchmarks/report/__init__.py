"""What a run found, for people: tables, a terminal, one HTML page, plots, a model card, and the files they go into."""
