"""Move the branches of If into the main graph."""
