"""Estimates about transfer, arrays in and numbers out: which of a teacher's channels the student's modality shares.

Distances of modalities, shared information and a forecast of the gain are to come.
"""

from crossdistill.diagnostics.venn import Generality, Ratios, modality_generality, nullify, venn_ratios

__all__ = ["Generality", "Ratios", "modality_generality", "nullify", "venn_ratios"]
