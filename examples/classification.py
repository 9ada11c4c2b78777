"""Cross-entropy of class labels: label smoothing, ignored rows, and in the same sweep the accuracy."""

import torch

import fastloss.functional as F

torch.manual_seed(0)
x = torch.randn(512, 16)
labels = (x @ torch.randn(16, 5)).argmax(1)
labels[::10] = -100  # unknown
model = torch.nn.Linear(16, 5)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

losses = []
for _ in range(30):
    loss, right = F.cross_entropy(model(x), labels, label_smoothing=0.05, return_accuracy=True)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, accuracy {right[labels >= 0].mean():.2f}")
