"""What was asked for and generated: tokens, logprobs and what a trainer would see."""
