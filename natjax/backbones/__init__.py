"""NAT, DiNAT, DiNAT_s and the isotropic models, and every published variant."""
