"""Estimates before any training: distances of modalities, shared information, a forecast of the gain; to come."""
