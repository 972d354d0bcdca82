"""Running over a data set: a model or saved predictions; can be resumed and shared by processes."""
