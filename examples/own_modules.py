"""Distil a teacher of your own into a student of your own, with a DataLoader of your own."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crossdistill

# A world where depth shows, noisily, part of what the picture shows. Put your own tensors, modules and loader here.
latent = torch.randn(2000, 8)
picture = torch.tanh(latent @ torch.randn(8, 64))
depth = torch.tanh(latent @ torch.randn(8, 16)) + 0.5 * torch.randn(2000, 16)
teacher = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
student = nn.Sequential(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 24))  # another width is fine

pairs = DataLoader(TensorDataset(picture, depth), batch_size=200, shuffle=True, drop_last=True)
student = crossdistill.distill(teacher, student, pairs, source="picture", target="depth", epochs=3)

with torch.no_grad():
    print("features of three depth samples:", student(depth[:3]).shape)
