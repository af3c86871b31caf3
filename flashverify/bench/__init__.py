"""How fast our kernels are beside their peers, on this machine's GPU: only once they are certified on it."""
