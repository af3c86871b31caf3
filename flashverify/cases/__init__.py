"""Cases: what is asked of a kernel. The problem, its mathematical definition, its inputs, and the matrices of cases."""
