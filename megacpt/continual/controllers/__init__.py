"""Controllers of the mixture: from the held-out losses seen so far to the weights of the domains from here on."""
