"""A variational autoencoder: reconstruction and Kullback-Leibler divergence, with free bits against a latent that is not used."""

import torch

import fastloss.functional as F

torch.manual_seed(0)
data = torch.sigmoid(torch.randn(256, 3) @ torch.randn(3, 24) * 2)
encoder, decoder = torch.nn.Linear(24, 8), torch.nn.Linear(4, 24)
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.02)

losses = []
for _ in range(60):
    mu, logvar = encoder(data).chunk(2, 1)
    latent = mu + (logvar / 2).exp() * torch.randn_like(mu)
    loss = F.vae_elbo_loss(decoder(latent), data, mu, logvar, recon="bce_logits", beta=0.5, kl_free_bits=0.05)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())

print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
