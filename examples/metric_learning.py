"""Embeddings with labels under pytorch-metric-learning's names: a miner, a triplet loss, and one with weights of classes."""

import torch

from fastloss.metric import losses as metric_losses
from fastloss.metric import miners

torch.manual_seed(0)
labels = torch.arange(128) % 8
x = torch.randn(8, 20)[labels] + 0.7 * torch.randn(128, 20)
model = torch.nn.Linear(20, 8)
triplets, miner = metric_losses.TripletMarginLoss(margin=0.2), miners.BatchHardMiner()
arcface = metric_losses.ArcFaceLoss(num_classes=8, embedding_size=8)
optimizer = torch.optim.Adam([*model.parameters(), *arcface.parameters()], lr=0.01)

losses = []
for _ in range(30):
    embeddings = model(x)
    loss = triplets(embeddings, labels, miner(embeddings, labels)) + 0.1 * arcface(embeddings, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
