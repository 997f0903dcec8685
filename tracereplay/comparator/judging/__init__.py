"""From what was measured to a verdict: settings before structure, structure before numbers."""
