"""How good are samples: distances, accuracies, neighbours."""
