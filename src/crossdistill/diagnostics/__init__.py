"""Estimates about transfer, arrays in and numbers out: will a teacher of another modality help, how much, how sure?

diagnosis       everything below in one call, with one verdict
forecast        the gain, before the student is trained
information     what two views say of one another, and the rule of complementarity (CCH)
distance, bound how far two modalities are apart, and what theory makes of it (CMCD)
venn            which channels of a teacher the student's modality shares (MFH)
pairing         what is wrong with the pairs
"""

from crossdistill.diagnostics.calibration import Calibration, calibrate, default_calibration
from crossdistill.diagnostics.diagnosis import Candidate, Diagnosis, Withheld, diagnose
from crossdistill.diagnostics.distance import kernel_entropy, kernel_kl, kernel_tv, mi_lower_bound, vote_error
from crossdistill.diagnostics.estimate import Estimate
from crossdistill.diagnostics.forecast import Forecast, Ranking, forecast_gain, rank_sources
from crossdistill.diagnostics.pairing import Finding, check_pairs
from crossdistill.diagnostics.ridge import RidgeStudent, ridge_student
from crossdistill.diagnostics.venn import Generality, Ratios, modality_generality, nullify, venn_ratios

__all__ = [
    "Calibration",
    "Candidate",
    "Diagnosis",
    "Estimate",
    "Finding",
    "Forecast",
    "Generality",
    "Ranking",
    "Ratios",
    "RidgeStudent",
    "Withheld",
    "calibrate",
    "check_pairs",
    "default_calibration",
    "diagnose",
    "forecast_gain",
    "kernel_entropy",
    "kernel_kl",
    "kernel_tv",
    "mi_lower_bound",
    "modality_generality",
    "nullify",
    "rank_sources",
    "ridge_student",
    "venn_ratios",
    "vote_error",
]
