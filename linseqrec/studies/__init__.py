"""Studies: what is trained, what is compared, and the pages that show what came out."""
