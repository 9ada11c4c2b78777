"""Boxes from boxes: generalised IoU has a gradient also where prediction and truth do not meet."""

import torch

import fastloss.functional as F

torch.manual_seed(0)
corners = torch.rand(64, 2) * 60
truth = torch.cat((corners, corners + 5 + torch.rand(64, 2) * 30), 1)
start = torch.rand(64, 2) * 60
boxes = torch.cat((start, start + 10), 1).requires_grad_()
optimizer = torch.optim.Adam([boxes], lr=1.0)

losses = []
for _ in range(100):
    loss = F.generalized_box_iou_loss(boxes, truth, reduction="mean")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

overlap = F.pairwise_box_iou(boxes.detach(), truth).diagonal().mean()
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, mean IoU {overlap:.2f}")
