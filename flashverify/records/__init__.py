"""Records: what is kept of a campaign. Later stages read these, and nothing else of the stages before."""
