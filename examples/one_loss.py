"""Use one objective in a training loop of your own; nothing else of crossdistill is needed."""

import torch
from torch import nn

from crossdistill.objectives import CrossModalContrastive, SimilarityDistillation

teacher_features = torch.randn(512, 48)  # computed once by any frozen model
sound = torch.randn(512, 20)  # row i belongs to row i of the teacher's
student = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 48))
similarity, contrastive = SimilarityDistillation(), CrossModalContrastive(0.5)
optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3)

for _ in range(20):
    rows = torch.randperm(512)[:128]
    features = student(sound[rows])
    loss = similarity(features, teacher_features[rows]) + contrastive(features, teacher_features[rows])
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
print(f"loss after 20 steps: {loss.item():.3f}")
