"""Several labels at once, most of them absent: binary cross-entropy with weights of the positives, and focal loss, which needs none."""

import torch

import fastloss.functional as F

torch.manual_seed(0)
x = torch.randn(512, 16)
target = ((x @ torch.randn(16, 8)) > 6).float()  # one label in fifteen
pos_weight = (1 - target.mean(0)) / target.mean(0).clamp_min(1e-3)
model = torch.nn.Linear(16, 8)
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)

losses = []
for _ in range(30):
    logits = model(x)
    weighted = F.binary_cross_entropy_with_logits(logits, target, pos_weight=pos_weight)
    focal = F.sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2.0, reduction="mean")
    loss = weighted + focal
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, labels found {((logits > 0) * target).sum() / target.sum():.2f}")
