"""What is done to rows: read, map, refuse, compare, split."""
