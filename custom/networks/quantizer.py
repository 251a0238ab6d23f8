"""Vector quantisation of latents: the codebook of the VQ-GAN."""

# no postponed annotations here: TorchScript reads the signatures of its unused methods
import math
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Quantized", "VectorQuantizer", "codes_and_levels", "embed", "round_scalars", "scalars_of"]

CPU_CHUNK_ELEMENTS = 2**18  # 1 MB: what a core keeps in its cache
DEVICE_CHUNK_ELEMENTS = 2**24  # few launches of kernels


class Quantized(NamedTuple):
    """Output of a bottleneck: ``latent`` (B, C, h, w, d), scalar ``loss``, ``indices`` int64.

    The indices are (B, h, w, d), of G > 1 codebooks (B, G, h, w, d), with S scalar channels (B, G + S, h, w, d), whose
    levels are counted from 0.
    """

    latent: Tensor
    loss: Tensor
    indices: Tensor


def embed(indices: Tensor, codes: Tensor, num_codebooks: int) -> Tensor:
    """Latents (B, C, *) of ``indices`` (B, *), of G > 1 codebooks (B, G, *), into ``codes`` (K, C)."""
    if num_codebooks == 1:
        return F.embedding(indices, codes).movedim(-1, 1).contiguous()
    pieces = F.embedding(_rows(indices, num_codebooks), _cut(codes, num_codebooks))
    return pieces.flatten(-2).movedim(-1, 1).contiguous()


def round_scalars(values: Tensor) -> tuple[Tensor, Tensor]:
    """Each value at the nearest of 256 levels from -8 to 8, and the numbers of these, int64 from 0.

    Gradients pass straight through.

    Source: finite scalar quantisation, Mentzer et al. 2023 (https://arxiv.org/abs/2309.15505).
    """
    levels = (values.float() * 16 + 128).round().clamp(0, 255).long()
    return values + (scalars_of(levels).to(values.dtype) - values).detach(), levels


def codes_and_levels(indices: Tensor, num_codebooks: int) -> tuple[Tensor, Tensor]:
    """Parts of ``Quantized.indices`` (B, G + S, *): those of codes, as ``embed`` takes them, and levels (B, S, *)."""
    codes, levels = indices[:, :num_codebooks], indices[:, num_codebooks:]
    return codes.squeeze(1) if num_codebooks == 1 else codes, levels


def scalars_of(levels: Tensor) -> Tensor:
    """The values of levels by their numbers, float32."""
    return (levels - 128).float() / 16


def _cut(codes: Tensor, num_codebooks: int) -> Tensor:
    """View (K · G, C / G) of ``codes`` (K, C): code k of codebook g is row k · G + g."""
    return codes.view(codes.shape[0] * num_codebooks, codes.shape[1] // num_codebooks)


def _rows(indices: Tensor, num_codebooks: int) -> Tensor:
    """Rows (B, *, G) of the cut codes that ``indices`` (B, G, *) name; of one codebook the indices themselves."""
    if num_codebooks == 1:
        return indices
    return indices.movedim(1, -1) * num_codebooks + torch.arange(num_codebooks, device=indices.device)


class VectorQuantizer(nn.Module):
    """Replaces each latent vector by its nearest code.

    ``z_q = e_k, k = argmin_j ‖z − e_j‖²``; gradients pass straight through. The nearest code is searched in chunks of
    voxels, so memory never grows with voxels × codes, and codebook statistics are summed by index, never by one-hot
    matrices. With the default ``update="ema"`` and one codebook the result equals MONAI's ``EMAQuantizer``.

    With G codebooks the channels of a latent vector are cut into G equal pieces, each of which has K codes of its own
    (product quantisation): K^G codes at the cost of K. Codebook g is columns g · C / G to (g + 1) · C / G of the codes
    (K, C), so the codes of one codebook, cut, are those that several can start from: no latent is worse represented.

    Args:
        num_embeddings: number of codes K of a codebook.
        embedding_dim: channels C of a latent vector.
        num_codebooks: G, of which C is a multiple.
        commitment_cost: weight β of ``‖z − sg(e)‖²``.
        update: ``"ema"`` moves the codes by exponential moving averages; ``"gradient"`` by the codebook loss
            ``‖sg(z) − e‖²``.
        decay: decay of the moving averages.
        epsilon: Laplace smoothing of the cluster sizes.
        revival_threshold: a code whose average count falls below this is moved to a random latent vector of the batch;
            0 switches revival off. Of several codebooks the code takes its own channels of the vector.
        data_init: start the codes from the first training batch instead of a normal distribution.
        max_chunk_elements: bound on the elements of one block of the distance matrix; 0 for what suits the device.

    Raises:
        ValueError: for an unknown ``update``, and channels that the codebooks cannot share equally.

    Source: van den Oord et al. 2017 (https://arxiv.org/abs/1711.00937); revival after Jukebox, Dhariwal et al. 2020
    (https://arxiv.org/abs/2005.00341); product quantisation after Jégou et al. 2011 (doi:10.1109/TPAMI.2010.57).
    """

    # of the training alone; the chunks bound the memory
    not_in_identity = (
        "commitment_cost", "ema", "decay", "epsilon", "revival_threshold", "chunk_sizes",
        "ema_cluster_size", "ema_w", "initialized",
    )  # fmt: skip
    # what was made before there could be several codebooks stays valid
    in_identity_unless = {"num_codebooks": 1}  # noqa: RUF012

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        num_codebooks: int = 1,
        commitment_cost: float = 0.25,
        update: str = "ema",
        decay: float = 0.99,
        epsilon: float = 1e-5,
        revival_threshold: float = 0.0,
        data_init: bool = False,
        max_chunk_elements: int = 0,
    ) -> None:
        super().__init__()
        if update not in ("ema", "gradient"):
            raise ValueError(f"update: expected 'ema' or 'gradient', found {update!r}.")
        if num_codebooks < 1 or embedding_dim % num_codebooks:
            raise ValueError(
                f"num_codebooks: expected 1 or another divisor of the {embedding_dim} channels of a latent vector, "
                f"found {num_codebooks}."
            )
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.num_codebooks = num_codebooks
        self.commitment_cost = commitment_cost
        self.ema = update == "ema"
        self.decay = decay
        self.epsilon = epsilon
        self.revival_threshold = revival_threshold
        bounds = [max_chunk_elements or default for default in (CPU_CHUNK_ELEMENTS, DEVICE_CHUNK_ELEMENTS)]
        self.chunk_sizes = [max(1, bound // num_embeddings) for bound in bounds]
        self.group_size = math.gcd(num_embeddings, 256)

        self.embedding = nn.Embedding(num_embeddings, embedding_dim)
        self.embedding.weight.requires_grad_(not self.ema)
        self.ema_cluster_size: Tensor
        self.ema_w: Tensor
        self.initialized: Tensor
        each = (num_codebooks, num_embeddings) if num_codebooks > 1 else (num_embeddings,)
        self.register_buffer("ema_cluster_size", torch.zeros(each))
        self.register_buffer("ema_w", self.embedding.weight.detach().clone())
        # a number, since federated learning subtracts and averages all that the state dict holds
        self.register_buffer("initialized", torch.tensor(float(not data_init)))

    def forward(self, latent: Tensor) -> Quantized:
        """Quantise ``latent`` (B, C, h, w, d); in training mode also update the codebook statistics."""
        flat = latent.float().movedim(1, -1).reshape(-1, self.embedding_dim)
        if self.training:
            self._initialize(flat.detach())
        indices = self.nearest(flat.detach())
        # (B, h, w, d), and of several codebooks their number behind the batch
        grid = indices.unflatten(0, [latent.shape[0], latent.shape[2], latent.shape[3], latent.shape[4]])
        if self.num_codebooks > 1:
            grid = grid.movedim(-1, 1)
        quantized = self.embed(grid)
        loss = self.commitment_cost * F.mse_loss(latent.float(), quantized.detach())
        if not self.ema:
            loss = loss + F.mse_loss(quantized, latent.detach().float())
        if self.training:
            self._update(flat.detach(), indices)
        straight_through = latent + (quantized - latent).detach()
        return Quantized(straight_through, loss, grid)

    def nearest(self, flat: Tensor) -> Tensor:
        """Indices (N,), of G > 1 codebooks (N, G), of the codes nearest to ``flat`` (N, C).

        Distances are in float32 whatever the autocast.
        """
        if torch.jit.is_scripting():
            return self._search(flat, self.chunk_size(flat))
        # a trace keeps the chunks it has seen: on a larger volume it would leave the rest of the voxels out
        chunk_size = flat.shape[0] if torch.jit.is_tracing() else self.chunk_size(flat)
        if torch.compiler.is_compiling():  # an exported graph holds the operations of every chunk: few large ones
            chunk_size = self.chunk_sizes[1]
        if not torch.amp.is_autocast_available(flat.device.type):  # the meta device
            return self._search(flat, chunk_size)
        with torch.autocast(flat.device.type, enabled=False):
            return self._search(flat, chunk_size)

    def chunk_size(self, flat: Tensor) -> int:
        """Rows of ``flat`` (N, C) that are compared with the codes at a time."""
        return self.chunk_sizes[0] if flat.is_cpu else self.chunk_sizes[1]

    def _search(self, flat: Tensor, chunk_size: int) -> Tensor:
        codes = self.embedding.weight.detach().float()
        if self.num_codebooks == 1:
            return self._search_one(flat, codes, chunk_size)
        # of pieces of the channels, which are views
        pairs = zip(flat.chunk(self.num_codebooks, 1), codes.chunk(self.num_codebooks, 1))  # noqa: B905  TorchScript
        return torch.stack([self._search_one(piece, book, chunk_size) for piece, book in pairs], dim=1)

    def _search_one(self, flat: Tensor, codes: Tensor, chunk_size: int) -> Tensor:
        # ‖z − e‖² = ‖z‖² − 2 (z·e − ‖e‖²/2): ‖z‖² does not change which code is nearest
        offset = -0.5 * codes.square().sum(dim=1)
        transposed = codes.t().contiguous()
        indices = torch.empty(flat.shape[0], dtype=torch.long, device=flat.device)
        for start in range(0, flat.shape[0], chunk_size):
            block = flat[start : start + chunk_size].float()
            indices[start : start + chunk_size] = self._largest(torch.addmm(offset, block, transposed))
        return indices

    def _largest(self, scores: Tensor) -> Tensor:
        """``scores.argmax(dim=1)``: the maxima of groups are found several times faster than the place of one."""
        if self.group_size == 1:
            return scores.argmax(dim=1)
        groups = scores.view(scores.shape[0], -1, self.group_size)
        best = groups.amax(dim=2).argmax(dim=1)
        within = groups[torch.arange(scores.shape[0], device=scores.device), best].argmax(dim=1)
        return best * self.group_size + within

    def embed(self, indices: Tensor) -> Tensor:
        """Latents (B, C, h, w, d) of ``indices`` as ``forward`` gives them."""
        return embed(indices, self.embedding.weight, self.num_codebooks)

    @torch.jit.unused
    def usage(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the codes that occur in ``indices``, in [0, 1], and their perplexity ``exp(H)``, in [1, K].

        Each is the least of the codebooks: a full one must not hide that another is empty.
        """
        counts = self._counts(_rows(indices, self.num_codebooks).flatten()).float()
        p = counts / counts.sum(dim=0)
        return (counts > 0).float().mean(dim=0).amin(), torch.special.entr(p).sum(dim=0).exp().amin()

    @torch.jit.unused
    def _counts(self, rows: Tensor) -> Tensor:
        """How often each code occurs, (K, G)."""
        size = self.num_embeddings * self.num_codebooks
        return torch.bincount(rows, minlength=size).view(-1, self.num_codebooks)

    @torch.jit.unused
    @torch.no_grad()
    def _initialize(self, flat: Tensor) -> None:
        if bool(self.initialized):
            return
        codes = self._draw(flat, self.num_embeddings)
        # a little jitter keeps codes that were drawn from one vector apart
        codes = self._same_on_every_rank(codes + 1e-3 * flat.std() * torch.randn_like(codes))
        self.embedding.weight.copy_(codes)
        self.ema_w.copy_(codes)
        self.ema_cluster_size.fill_(1.0)
        self.initialized.fill_(1.0)

    @torch.jit.unused
    @torch.no_grad()
    def _update(self, flat: Tensor, indices: Tensor) -> None:
        if not self.ema:
            return
        rows = _rows(indices, self.num_codebooks).flatten()
        counts = self._counts(rows).to(flat.dtype)
        sums = torch.zeros_like(self.ema_w)
        _cut(sums, self.num_codebooks).index_add_(0, rows, _cut(flat.contiguous(), self.num_codebooks))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        sizes = self.ema_cluster_size
        sizes.mul_(self.decay).add_(counts.t().view_as(sizes), alpha=1 - self.decay)
        self.ema_w.mul_(self.decay).add_(sums, alpha=1 - self.decay)
        if self.revival_threshold > 0:
            self._revive(flat)
        total = sizes.sum(dim=-1, keepdim=True)
        smoothed = (sizes + self.epsilon) / (total + self.num_embeddings * self.epsilon) * total
        self.embedding.weight.copy_(self.ema_w / self._by_channel(smoothed))

    @torch.jit.unused
    def _revive(self, flat: Tensor) -> None:
        dead = self.ema_cluster_size.lt(self.revival_threshold)
        drawn = self._draw(flat, self.num_embeddings)
        # a revived code starts with the weight of a living one, or it would die again in the next step
        self.ema_w.copy_(torch.where(self._by_channel(dead), drawn, self.ema_w))
        self.ema_cluster_size.copy_(torch.where(dead, torch.ones_like(self.ema_cluster_size), self.ema_cluster_size))

    @torch.jit.unused
    def _by_channel(self, of_code: Tensor) -> Tensor:
        """``of_code``, (K,) or (G, K), for the channels of the codes: (K, 1) or (K, C)."""
        if self.num_codebooks == 1:
            return of_code.unsqueeze(1)
        return of_code.t().repeat_interleave(self.embedding_dim // self.num_codebooks, dim=1)

    @torch.jit.unused
    def _draw(self, flat: Tensor, number: int) -> Tensor:
        """``number`` random rows of ``flat``, the same on every rank."""
        rows = torch.randint(flat.shape[0], (number,), device=flat.device)
        return self._same_on_every_rank(flat[rows])

    @torch.jit.unused
    def _same_on_every_rank(self, tensor: Tensor) -> Tensor:
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(tensor, src=0)
        return tensor
