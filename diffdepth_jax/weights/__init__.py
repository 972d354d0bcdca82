"""Reading foreign and own checkpoints, and tables that carry names to leaves. Knows no model."""
