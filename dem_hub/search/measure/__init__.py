"""What a search measures: losses, their slopes and the logits behind them."""
