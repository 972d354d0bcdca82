"""Running over a data set: a model or saved predictions, resumed or shared by processes."""
