"""An experiment file on the small world of `tests/conftest.py`."""

EXPERIMENT = """\
data: {name: toy, source: rich, target: poor}
networks:
  rich: {hidden: [16], dim: 8}
  poor: {hidden: [16], dim: 8}
stages:
  teacher: {method: simclr, modality: rich, epochs: 2, batch_size: 32}
  student:
    method: distillation
    teacher: teacher
    objectives: {similarity: 1.0}
    epochs: 2
    batch_size: 32
compare: [l2]
evaluate: {labels_per_class: 3, fine_tune_steps: 5}
seeds: 2
"""

LEAN = (  # one seed, one row, one evaluation
    EXPERIMENT.replace("seeds: 2", "seeds: 1")
    .replace("compare: [l2]", "compare: []")
    .replace("fine_tune_steps: 5", "ways: [linear]")
)
