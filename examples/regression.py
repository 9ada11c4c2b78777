"""Real numbers with outliers: Huber's loss, and quantiles for a range in which the truth lies nine times in ten."""

import torch

import fastloss

torch.manual_seed(0)
x = torch.linspace(-1, 1, 400).unsqueeze(1)
y = 2 * x + 0.3 * torch.randn_like(x) + 20 * (torch.rand_like(x) < 0.02)
model = torch.nn.Linear(1, 3)  # the middle, and the ends of the range
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
huber = fastloss.nn.HuberLoss(delta=0.5)
low, high = fastloss.nn.QuantileLoss(0.05), fastloss.nn.QuantileLoss(0.95)

losses = []
for _ in range(100):
    middle, bottom, top = model(x).split(1, 1)
    loss = huber(middle, y) + low(bottom, y) + high(top, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

inside = ((bottom < y) & (y < top)).float().mean()
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, slope {model.weight[0].item():.2f}, inside {inside:.2f}")
