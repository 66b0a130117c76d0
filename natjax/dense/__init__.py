"""Dense prediction: whole segmentors and detectors, and the parts that they are made of."""
