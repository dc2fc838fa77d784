"""The verbs on keys, without Flask and without SQL."""
