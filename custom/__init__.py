"""Brain MRI contrast translation with an adaptive latent diffusion model (Kim & Park, WACV 2024)."""
