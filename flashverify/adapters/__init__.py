"""Adapters: kernels to examine, behind one protocol. Ours is one among several."""
