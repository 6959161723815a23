"""What comes closer to training on the mixture than a weighted sum does: RegMean, rounds, TIES and DARE."""
