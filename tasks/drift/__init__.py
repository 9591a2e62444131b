"""Whether what arrives is unlike what the champion learned from."""
