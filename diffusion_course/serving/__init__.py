"""From a model to a product: files that run elsewhere, smaller weights, queues, signed pictures."""
