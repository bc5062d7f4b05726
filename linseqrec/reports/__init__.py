"""Reports: finished runs side by side, over seeds, with what their differences are worth."""
