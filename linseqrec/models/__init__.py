"""One file a system: its configuration and its architecture, readable top to bottom."""
