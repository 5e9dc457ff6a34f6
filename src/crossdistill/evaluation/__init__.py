"""Metrics, probes, fine-tuning and retrieval on frozen features, and the statistics of comparisons."""

from crossdistill.evaluation.embed import embed, few_labels
from crossdistill.evaluation.finetune import fine_tune
from crossdistill.evaluation.knn import knn_predict
from crossdistill.evaluation.league import (
    Friedman,
    average_ranks,
    cliques,
    critical_difference,
    data_sets_needed,
    friedman,
    pairwise_signed_rank,
    rank_methods,
    signed_rank_p,
)
from crossdistill.evaluation.linear import LinearProbe, UnitLength, linear_probe
from crossdistill.evaluation.metrics import (
    accuracy,
    average_precision,
    balanced_accuracy,
    correct,
    expected_calibration_error,
    macro_f1,
    negative_log_likelihood,
    recall_at_k,
    reciprocal_rank,
)
from crossdistill.evaluation.retrieval import found_within, partner_ranks
from crossdistill.evaluation.statistics import (
    Interval,
    bootstrap_difference,
    bootstrap_differences,
    holm,
    mean_interval,
    minimum_detectable_difference,
    paired_difference,
    paired_p_value,
    sign_verdict,
)

__all__ = [
    "Friedman",
    "Interval",
    "LinearProbe",
    "UnitLength",
    "accuracy",
    "average_precision",
    "average_ranks",
    "balanced_accuracy",
    "bootstrap_difference",
    "bootstrap_differences",
    "cliques",
    "correct",
    "critical_difference",
    "data_sets_needed",
    "embed",
    "expected_calibration_error",
    "few_labels",
    "fine_tune",
    "found_within",
    "friedman",
    "holm",
    "knn_predict",
    "linear_probe",
    "macro_f1",
    "mean_interval",
    "minimum_detectable_difference",
    "negative_log_likelihood",
    "paired_difference",
    "paired_p_value",
    "pairwise_signed_rank",
    "partner_ranks",
    "rank_methods",
    "recall_at_k",
    "reciprocal_rank",
    "sign_verdict",
    "signed_rank_p",
]
