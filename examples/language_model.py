"""The next token: a head of many words whose logits never exist, with z-loss against their drift."""

import torch

import fastloss.functional as F

torch.manual_seed(0)
vocabulary, width = 500, 32
text = torch.arange(600) * 7 % vocabulary  # each word has one that follows it
embedding = torch.nn.Embedding(vocabulary, width)
head = torch.nn.Linear(width, vocabulary, bias=False)
optimizer = torch.optim.Adam([*embedding.parameters(), *head.parameters()], lr=0.05)

losses = []
for _ in range(30):
    hidden = embedding(text[:-1])  # of a model that sees one word
    loss = F.linear_cross_entropy(hidden, head.weight, text[1:], z_loss=1e-4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
