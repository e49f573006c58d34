"""What the verbs of `proteinlm` measured of one encoder, on one page: scripts/reproduce_prottrans.sh runs them."""
