"""Estimates about transfer, arrays in and numbers out: will a teacher of another modality help, how much, how sure?

diagnosis       candidate teachers in one call, with one verdict and its reasons
forecast        the gain, before the student is trained
information     what two views say of one another; the rule of complementarity (CCH)
distance, bound how far two modalities are apart, and what theory makes of it (CMCD)
venn            which channels of a teacher the student's modality shares (MFH)
shared          what both know of the label, each alone, and only side by side
competition     which modality wins where both are trained together
ntdh            how far teacher and student differ beside the true class
pairing         what is wrong with the pairs
"""

from crossdistill.diagnostics.alignment import PairingTest, pairing_test
from crossdistill.diagnostics.bound import (
    Certificate,
    ReconstructedBound,
    kappa_lower_bound,
    rademacher_linear,
    reconstructed_bound,
    vote_certificate,
)
from crossdistill.diagnostics.calibration import Calibration, Realised, calibrate, default_calibration
from crossdistill.diagnostics.competition import Competition, modality_competition
from crossdistill.diagnostics.competition_report import (
    CompetitionReport,
    LearningSpeed,
    competition_report,
    probe_gap,
)
from crossdistill.diagnostics.complementary import Complementarity, complementarity, rank_teachers
from crossdistill.diagnostics.diagnosis import Candidate, Diagnosis, Withheld, diagnose
from crossdistill.diagnostics.distance import kernel_entropy, kernel_kl, kernel_tv, mi_lower_bound, vote_error
from crossdistill.diagnostics.estimate import Estimate
from crossdistill.diagnostics.forecast import Forecast, Ranking, forecast_gain, rank_sources
from crossdistill.diagnostics.gaussian_risk import GaussianTeacher, gaussian_gap
from crossdistill.diagnostics.information import CalibrationPoint, calibration_line, mutual_information
from crossdistill.diagnostics.information_prepared import probe_logits
from crossdistill.diagnostics.joint_training import Aligned, align_jointly
from crossdistill.diagnostics.ntdh import nontarget_estimate, nontarget_of_probes
from crossdistill.diagnostics.pairing import Finding, check_pairs
from crossdistill.diagnostics.ridge import RidgeStudent, ridge_student
from crossdistill.diagnostics.shared import SharedInformation, shared_information
from crossdistill.diagnostics.venn import Generality, Ratios, modality_generality, nullify, venn_ratios

__all__ = [
    "Aligned",
    "Calibration",
    "CalibrationPoint",
    "Candidate",
    "Certificate",
    "Competition",
    "CompetitionReport",
    "Complementarity",
    "Diagnosis",
    "Estimate",
    "Finding",
    "Forecast",
    "GaussianTeacher",
    "Generality",
    "LearningSpeed",
    "PairingTest",
    "Ranking",
    "Ratios",
    "Realised",
    "ReconstructedBound",
    "RidgeStudent",
    "SharedInformation",
    "Withheld",
    "align_jointly",
    "calibrate",
    "calibration_line",
    "check_pairs",
    "competition_report",
    "complementarity",
    "default_calibration",
    "diagnose",
    "forecast_gain",
    "gaussian_gap",
    "kappa_lower_bound",
    "kernel_entropy",
    "kernel_kl",
    "kernel_tv",
    "mi_lower_bound",
    "modality_competition",
    "modality_generality",
    "mutual_information",
    "nontarget_estimate",
    "nontarget_of_probes",
    "nullify",
    "pairing_test",
    "probe_gap",
    "probe_logits",
    "rademacher_linear",
    "rank_sources",
    "rank_teachers",
    "reconstructed_bound",
    "ridge_student",
    "shared_information",
    "venn_ratios",
    "vote_certificate",
    "vote_error",
]
