"""Images of difficult conditions made from clean ones, with labels, checks and a gallery."""
