"""The paper's pictures, and others that say how good a model is, of any checkpoint."""
