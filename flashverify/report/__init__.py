"""Reports: what a certificate says, for people. They read records, and nothing of the stages before."""
