"""Reading checkpoints, ours and others', and tables that map names to leaves. Knows no model."""
