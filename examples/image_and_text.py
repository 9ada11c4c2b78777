"""Pairs of an image and a text: CLIP's loss with a learned scale. SigLIP's takes the same features, and a bias."""

import torch

import fastloss.functional as F

torch.manual_seed(0)
meaning = torch.randn(128, 8)
images, texts = meaning @ torch.randn(8, 32), meaning @ torch.randn(8, 24)
image_tower, text_tower = torch.nn.Linear(32, 16), torch.nn.Linear(24, 16)
log_scale = torch.nn.Parameter(torch.tensor(10.0).log())
optimizer = torch.optim.Adam([*image_tower.parameters(), *text_tower.parameters(), log_scale], lr=0.02)

losses = []
for _ in range(40):
    a = torch.nn.functional.normalize(image_tower(images))
    b = torch.nn.functional.normalize(text_tower(texts))
    loss = F.clip_loss(a, b, log_scale.exp())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

found = ((a @ b.T).argmax(1) == torch.arange(128)).float().mean()
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, the right text first {found:.2f}, scale {log_scale.exp():.1f}")
