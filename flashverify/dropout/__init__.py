"""Dropout as it is defined: the host's own random words, the mask that they give, and what is known of other generators."""
