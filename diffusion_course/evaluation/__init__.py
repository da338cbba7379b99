"""How good are samples: distances, class scores, neighbours, clusters, judgements, intervals."""
