"""Code that is not touched: torch's own loss functions and modules run on fastloss inside the block."""

import torch

import fastloss

torch.manual_seed(0)
x = torch.randn(256, 10)
y = x @ torch.randn(10, 1)
model = torch.nn.Linear(10, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
criterion = torch.nn.SmoothL1Loss()

losses = []
with fastloss.patch_torch():
    for _ in range(40):
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
print(fastloss.explain(fastloss.functional.smooth_l1_loss, model(x), y))
