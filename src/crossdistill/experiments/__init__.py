"""The experiment file, running one, what it says in the end, and the student it leaves."""

from crossdistill.experiments.bench import Bench
from crossdistill.experiments.results import read_results
from crossdistill.experiments.run import plan, run_experiment
from crossdistill.experiments.schema import parse_experiment, read_experiment, to_yaml
from crossdistill.experiments.specs import Experiment
from crossdistill.experiments.student import Prediction, Student, load_student

__all__ = [
    "Bench",
    "Experiment",
    "Prediction",
    "Student",
    "load_student",
    "parse_experiment",
    "plan",
    "read_experiment",
    "read_results",
    "run_experiment",
    "to_yaml",
]
