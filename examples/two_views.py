"""Features without labels, from two views of each sample: NT-Xent (SimCLR), whose matrix of scores never exists."""

import torch

import fastloss.functional as F

torch.manual_seed(0)
samples = torch.randn(256, 32)
encoder = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
optimizer = torch.optim.Adam(encoder.parameters(), lr=0.005)

losses = []
for _ in range(40):
    first, second = (encoder(samples + 0.3 * torch.randn_like(samples)) for _ in range(2))
    loss = F.nt_xent_loss(first, second, temperature=0.2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
