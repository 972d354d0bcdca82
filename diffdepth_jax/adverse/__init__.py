"""Images of difficult conditions from clean ones, with labels, checks and pictures of them."""
