"""CALM (arXiv 2510.27688) for Hugging Face transformers, 4.43 or newer: travels with a checkpoint, needs nothing else.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = model.generate(tokenizer("Once upon", return_tensors="pt").input_ids, max_length=200, temperature=0.5)

A folder with the autoencoder alone is loaded by `AutoModel`. Parameters have the names of the official code,
github.com/shaochenze/calm, so that each reads the files of the other.

Letters at the end of names are axes: B texts, T tokens, K tokens of a patch, P patches, R patches in a row, N samples,
H hidden, Z latent, V vocabulary.
"""

import math
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

TIMES = 1000
EPSILON = 1e-6


class AutoencoderConfig(PretrainedConfig):
    """The autoencoder's fields of `config.json`."""

    model_type = "calm_autoencoder"

    def __init__(self, **fields):
        fields.pop("rope_scaling", None)  # always null, and newer releases warn of it
        super().__init__(**fields)
        # Some releases take these for settings of theirs, and move or drop them.
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "rope_theta"):
            if name in fields:
                setattr(self, name, fields[name])


class CalmConfig(AutoencoderConfig):
    """CALM's fields; `ae_config` holds those of the autoencoder."""

    model_type = "calm"


class RMSNorm(nn.Module):
    """Statistics in fp32, rounded to the input's type, then times the weight."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return self.weight * F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Statistics in fp32."""

    def __init__(self, size, affine=True):
        super().__init__(size, eps=EPSILON, elementwise_affine=affine)

    def forward(self, x):
        weight, bias = (None if each is None else each.float() for each in (self.weight, self.bias))
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class GatedMLP(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


# The autoencoder.


class ResidualLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)
        self.layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x):
        return x + self.mlp(self.layernorm(x))


class TokenTable(nn.Embedding):
    """One matrix for both ends: ids to rows, and hidden states to logits."""

    def forward(self, ids_or_hidden):
        if ids_or_hidden.is_floating_point():
            return F.linear(ids_or_hidden, self.weight)
        return super().forward(ids_or_hidden)


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = TokenTable(config.vocab_size, config.hidden_size)
        self.encoder_layers = nn.ModuleList(ResidualLayer(config) for _ in range(config.num_encoder_layers))
        self.squeeze_layer = nn.Linear(config.patch_size * config.hidden_size, config.hidden_size)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_to_latent = nn.Linear(config.hidden_size, 2 * config.latent_size)

    def forward(self, ids_RK):
        """Mean and log standard deviation (R, Z) of the posterior."""
        x, half = self.embed_tokens(ids_RK), len(self.encoder_layers) // 2
        for layer in self.encoder_layers[:half]:
            x = layer(x)
        x = self.squeeze_layer(x.flatten(1))
        for layer in self.encoder_layers[half : 2 * half]:
            x = layer(x)
        return self.hidden_to_latent(self.norm(x)).chunk(2, dim=-1)


class Decoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_size = config.patch_size
        self.latent_to_hidden = nn.Linear(config.latent_size, config.hidden_size)
        self.decoder_layers = nn.ModuleList(ResidualLayer(config) for _ in range(config.num_decoder_layers))
        self.expand_layer = nn.Linear(config.hidden_size, config.patch_size * config.hidden_size)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, latent_RZ):
        """Hidden states (R, K, H) of the tokens."""
        half = len(self.decoder_layers) // 2
        x = self.latent_to_hidden(latent_RZ.to(self.latent_to_hidden.weight.dtype))
        for layer in self.decoder_layers[:half]:
            x = layer(x)
        x = self.expand_layer(x).unflatten(-1, (self.patch_size, -1))
        for layer in self.decoder_layers[half : 2 * half]:
            x = layer(x)
        return self.norm(x)


class CalmBase(PreTrainedModel):
    """What transformers wants of all of them."""

    base_model_prefix = ""
    # The official code saves these once more, under a second name.
    _keys_to_ignore_on_load_unexpected = (r"decoder\.lm_head_weight", r"^generative_head\.(?!net\.)")

    def _init_weights(self, module):
        """Nothing: it is there to be loaded, and training is done elsewhere."""


class Autoencoder(CalmBase):
    """K tokens to one latent vector and back."""

    config_class = AutoencoderConfig

    def __init__(self, config):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.post_init()

    def encode(self, ids_RK):
        """Mean and log standard deviation (R, Z) of the posterior."""
        return self.encoder(ids_RK)

    def logits(self, latent_RZ):
        """Logits (R, K, V) of the tokens of each latent."""
        return self.encoder.embed_tokens(self.decoder(latent_RZ))

    def forward(self, input_ids):
        """Logits (B, T, V) of the tokens, by way of the posterior's mean; T is a multiple of K."""
        mean_RZ, _ = self.encode(input_ids.reshape(-1, self.config.patch_size))
        return self.logits(mean_RZ).reshape(*input_ids.shape, -1)


# The Transformer over patches.


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden, self.heads = config.hidden_size, config.num_attention_heads
        self.groups = config.num_key_value_heads or self.heads
        self.size = hidden // self.heads
        self.theta = config.rope_theta
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, self.groups * self.size, bias=False)
        self.v_proj = nn.Linear(hidden, self.groups * self.size, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x, past):
        """(B, P, H) to (B, P, H); returns keys and values for the next call, too."""
        B, P, _ = x.shape
        seen = 0 if past is None else past[0].shape[2]
        query, key, value = (
            project(x).view(B, P, -1, self.size).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = (self.rotated(each, seen) for each in (query, key))
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        repeats = self.heads // self.groups
        keys, values = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        mask = torch.ones(P, seen + P, dtype=torch.bool, device=x.device).tril(seen)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return self.o_proj(out.transpose(1, 2).reshape(B, P, -1)), (key, value)

    def rotated(self, x, first):
        """Rotary position embedding, halves against halves; positions count from `first`."""
        exponents = torch.arange(0, self.size, 2, dtype=torch.float32, device=x.device) / self.size
        positions = torch.arange(first, first + x.shape[2], dtype=torch.float32, device=x.device)
        angles = positions[:, None] * self.theta**-exponents
        angles = torch.cat([angles, angles], dim=-1)
        left, right = x.chunk(2, dim=-1)
        return x * angles.cos().to(x.dtype) + torch.cat([-right, left], dim=-1) * angles.sin().to(x.dtype)


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, past):
        attended, cache = self.self_attn(self.input_layernorm(x), past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), cache


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, past):
        caches = []
        for layer, before in zip(self.layers, past or [None] * len(self.layers), strict=True):
            x, cache = layer(x, before)
            caches.append(cache)
        return self.norm(x), caches


# The heads: hidden states and noise to samples of the next latent vector.


class RandomNoise:
    """What a head draws of R rows, by name; another object with these two methods makes a sample repeatable."""

    def __init__(self, rows, device, generator=None):
        self.rows, self.device, self.generator = rows, device, generator

    def uniform(self, purpose, count, size):
        """U[0, 1), (count, R, size)."""
        return torch.rand(count, self.rows, size, device=self.device, generator=self.generator)

    def normal(self, purpose, count, size):
        """N(0, 1), (count, R, size)."""
        return torch.randn(count, self.rows, size, device=self.device, generator=self.generator)


class EnergyBlock(nn.Module):
    def __init__(self, H):
        super().__init__()
        self.in_ln = LayerNorm(H)
        self.linears = nn.Sequential(
            nn.Linear(2 * H, H), nn.SiLU(), nn.Linear(H, H), nn.SiLU(), nn.Linear(H, 2 * H)
        )  # fmt: skip
        self.down_proj = nn.Linear(H, H)

    def forward(self, x, y):
        gate, up = self.linears(torch.cat([self.in_ln(x), y], dim=-1)).chunk(2, dim=-1)
        return x + self.down_proj(F.silu(gate) * up)


class EnergyOutput(nn.Module):
    def __init__(self, H, Z):
        super().__init__()
        self.in_ln = LayerNorm(H)
        self.linears = nn.Sequential(nn.Linear(H, H), nn.SiLU(), nn.Linear(H, Z))

    def forward(self, x):
        return self.linears(self.in_ln(x))


class EnergyHead(nn.Module):
    """A sample in one step."""

    def __init__(self, config):
        super().__init__()
        H, self.noise_size = config.hidden_size, config.noise_size
        self.noise_embd = nn.Linear(self.noise_size, H)
        self.hidden_embd = nn.Linear(H, H)
        self.norm_hidden = LayerNorm(H)
        self.norm_noise = LayerNorm(H)
        self.mlp_blocks = nn.ModuleList(EnergyBlock(H) for _ in range(config.num_mlp_layers))
        self.final_layer = EnergyOutput(H, config.latent_size)

    def sample(self, hidden_RH, noise, count, steps=None):
        """Samples (count, R, Z)."""
        uniform = noise.uniform("head", count, self.noise_size) - 0.5
        x = self.norm_noise(self.noise_embd(uniform.to(hidden_RH.dtype)))
        y = self.norm_hidden(self.hidden_embd(hidden_RH)).expand_as(x)
        for block in self.mlp_blocks:
            x = block(x, y)
        return self.final_layer(x)


class TimeEmbedding(nn.Module):
    def __init__(self, H):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, H), nn.SiLU(), nn.Linear(H, H))

    def forward(self, time, dtype):
        exponents = torch.arange(128, dtype=torch.float32, device=time.device) / 128
        angles = time.float()[..., None] * torch.exp(-math.log(10000.0) * exponents)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype))


class DenoiserBlock(nn.Module):
    def __init__(self, H):
        super().__init__()
        self.in_ln = LayerNorm(H)
        self.mlp = nn.Sequential(nn.Linear(H, H), nn.SiLU(), nn.Linear(H, H))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(H, 3 * H))

    def forward(self, x, y):
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class DenoiserOutput(nn.Module):
    def __init__(self, H, outputs):
        super().__init__()
        self.norm_final = LayerNorm(H, affine=False)
        self.linear = nn.Linear(H, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(H, 2 * H))

    def forward(self, x, y):
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class Denoiser(nn.Module):
    """The network of the diffusion and the flow-matching head."""

    def __init__(self, config, outputs):
        super().__init__()
        H = config.hidden_size
        self.time_embed = TimeEmbedding(H)
        self.cond_embed = nn.Linear(H, H)
        self.input_proj = nn.Linear(config.latent_size, H)
        self.res_blocks = nn.ModuleList(DenoiserBlock(H) for _ in range(config.num_mlp_layers))
        self.final_layer = DenoiserOutput(H, outputs)

    def forward(self, x_NRZ, time, hidden_RH):
        """What it says (N, R, outputs), in fp32, of noised latents; times are whole, (N, R) or (1, 1)."""
        dtype = hidden_RH.dtype
        y = self.time_embed(time, dtype) + self.cond_embed(hidden_RH)
        x = self.input_proj(x_NRZ.to(dtype))
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y).float()


class DiffusionHead(nn.Module):
    """Takes noise away in `steps` of 1000 steps (Nichol & Dhariwal 2021: cosine schedule, learned variances)."""

    def __init__(self, config):
        super().__init__()
        self.latent_size = config.latent_size
        self.steps = getattr(config, "num_sampling_steps", None) or 100
        self.net = Denoiser(config, 2 * config.latent_size)

    def sample(self, hidden_RH, noise, count, steps=None):
        """Samples (count, R, Z)."""
        steps, device = steps or self.steps, hidden_RH.device
        times = [round(number * (TIMES - 1) / (steps - 1)) for number in range(steps)]
        abar = signal_levels()[times]
        before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        beta = 1 - abar / before
        variance = beta * (1 - before) / (1 - abar)
        variance[0] = variance[1]
        x = noise.normal("start", count, self.latent_size).to(device)
        for step in reversed(range(steps)):
            level, past = abar[step], before[step]
            time = torch.full((1, 1), times[step], device=device)
            noise_NRZ, share = self.net(x, time, hidden_RH).chunk(2, dim=-1)
            clean = float((1 / level).sqrt()) * x - float((1 / level - 1).sqrt()) * noise_NRZ
            x = (
                float(beta[step] * past.sqrt() / (1 - level)) * clean
                + float((1 - past) * (1 - beta[step]).sqrt() / (1 - level)) * x
            )
            if step:
                share = (share + 1) / 2
                log_variance = share * float(beta[step].log()) + (1 - share) * float(variance[step].log())
                fresh = noise.normal(f"step {step}", count, self.latent_size).to(device)
                x = x + (0.5 * log_variance).exp() * fresh
        return x


def signal_levels():
    """The share of the signal's variance that is left after each of the 1000 steps, in fp64."""
    level = [math.cos((step / TIMES + 0.008) / 1.008 * math.pi / 2) ** 2 for step in range(TIMES + 1)]
    kept = [1 - min(1 - level[step + 1] / level[step], 0.999) for step in range(TIMES)]
    return torch.tensor(kept, dtype=torch.float64).cumprod(0)


class FlowHead(nn.Module):
    """Follows the velocity from noise to a sample by the midpoint rule (flow matching)."""

    def __init__(self, config):
        super().__init__()
        self.latent_size = config.latent_size
        self.steps = getattr(config, "num_sampling_steps", None) or 10
        self.net = Denoiser(config, config.latent_size)

    def sample(self, hidden_RH, noise, count, steps=None):
        """Samples (count, R, Z)."""
        steps = steps or self.steps
        x = noise.normal("start", count, self.latent_size).to(hidden_RH.device)
        for step in range(steps):
            first, middle = (
                torch.full((1, 1), TIMES * half // (2 * steps), device=x.device) for half in (2 * step, 2 * step + 1)
            )
            halfway = x + self.net(x, first, hidden_RH) / (2 * steps)
            x = x + self.net(halfway, middle, hidden_RH) / steps
        return x


# The whole.


class CalmModel(CalmBase):
    """Transformer, head and autoencoder."""

    config_class = CalmConfig

    def __init__(self, config):
        super().__init__(config)
        H = config.hidden_size
        self.ae_model = Autoencoder(AutoencoderConfig(**config.ae_config))
        self.transformer = Transformer(config)
        self.embed_proj = nn.Sequential(
            nn.Linear(config.patch_size * H, 2 * H), nn.SiLU(), nn.Linear(2 * H, H), LayerNorm(H)
        )
        self.add_head(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.transformer.embed_tokens

    def hidden_states(self, ids_BT, past=None):
        """Hidden states (B, P, H) of whole patches, and the cache for those that follow."""
        embedded = self.transformer.embed_tokens(ids_BT)
        patches = embedded.reshape(len(ids_BT), -1, self.config.patch_size * self.config.hidden_size)
        return self.transformer(self.embed_proj(patches), past)

    def forward(self, input_ids, return_dict=True):
        """Hidden states of whole patches; `sample` draws from each of them what may follow. A step has no logits."""
        hidden_BPH, _ = self.hidden_states(input_ids)
        return BaseModelOutput(last_hidden_state=hidden_BPH) if return_dict else (hidden_BPH,)

    def sample(self, hidden_RH, count=1, noise=None, steps=None):
        """Samples (count, R, Z) of the latent vector behind each hidden state."""
        noise = noise or RandomNoise(len(hidden_RH), hidden_RH.device)
        return self.head().sample(hidden_RH, noise, count, steps)

    def tokens(self, latent):
        """The most probable K tokens (..., K) of latent vectors (..., Z)."""
        flat_RZ = latent.flatten(0, -2)
        chunks = [self.ae_model.logits(chunk).argmax(dim=-1) for chunk in flat_RZ.split(512)]
        return torch.cat(chunks).unflatten(0, latent.shape[:-1])

    @torch.no_grad()
    def generate(self, input_ids, attention_mask=None, max_length=2048, temperature=0.5, num_samples=200, noise=None):
        """Continue texts of one length, as the official code does; returns ids (B, up to max_length).

        Args:
            input_ids: (B, T); what lacks to whole patches is filled up with pad tokens, which become context.
            attention_mask: must be all ones, if it is given.
            max_length: tokens at most, rounded up to whole patches, the prompt counted.
            temperature: 1, or one over a whole number: each patch is then chosen from a pool of samples, the more
                often it occurs there the sooner.
            num_samples: of such a pool.
            noise: makes the noise of a step from B rows; none takes torch's default generator.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError("prompts of different lengths cannot go together: give them one by one")
        sharpness = round(1 / temperature)
        if sharpness < 1 or abs(sharpness * temperature - 1) > 0.0025:
            raise ValueError("the temperature must be one over a whole number: 1, 0.5, 0.333333, 0.25 ...")
        K, pad, eos = self.config.patch_size, self.config.pad_token_id, self.config.eos_token_id
        ends = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        fill = ends[0] if pad is None and ends else pad
        lacking = -input_ids.shape[1] % K
        if lacking and fill is None:
            raise ValueError(f"the prompt has no whole patches of {K} tokens, and there is no pad token to fill them")
        ids = F.pad(input_ids, (0, lacking), value=fill)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        feed, past = ids, None
        while ids.shape[1] < max_length and not bool(ended.all()):
            hidden_BPH, past = self.hidden_states(feed, past)
            drawn = noise(len(ids)) if noise else RandomNoise(len(ids), ids.device)
            feed = self.next_patch(hidden_BPH[:, -1], sharpness, num_samples, drawn)
            if ends:
                feed = torch.where(ended[:, None], torch.full_like(feed, fill), feed)
                ended = ended | torch.isin(feed, torch.tensor(ends, device=feed.device)).any(dim=1)
            ids = torch.cat([ids, feed], dim=1)
        if pad is None:
            return ids
        return ids.gather(1, (ids == pad).int().argsort(dim=1, stable=True))

    def next_patch(self, hidden_BH, sharpness, num_samples, noise):
        """Tokens (B, K) of the next patch."""
        if sharpness == 1:
            return self.tokens(self.sample(hidden_BH, 1, noise)[0])
        pool_BSK = self.tokens(self.sample(hidden_BH, num_samples, noise)).transpose(0, 1)
        return torch.tensor([choose(row, sharpness) for row in pool_BSK.tolist()], device=hidden_BH.device)

    def head(self):
        """The module that samples."""
        return self.generative_head


def choose(pool, sharpness):
    """A patch of a pool, as likely as it is to be drawn `sharpness` times in a row without putting back."""
    counts = Counter(map(tuple, pool))
    for agreeing in range(sharpness, 0, -1):
        weights = [math.comb(count, agreeing) for count in counts.values()]
        if any(weights):
            chances = torch.tensor([weight / sum(weights) for weight in weights], dtype=torch.float64)
            return list(counts)[int(torch.multinomial(chances, 1))]
    raise AssertionError("each patch of a pool is in it at least once")


class EnergyTransformer(CalmModel):
    """With the energy head."""

    def add_head(self, config):
        self.mlp_generator = EnergyHead(config)

    def head(self):
        return self.mlp_generator


class DiffusionTransformer(CalmModel):
    """With the diffusion head."""

    def add_head(self, config):
        self.generative_head = DiffusionHead(config)


class FlowTransformer(CalmModel):
    """With the flow-matching head."""

    def add_head(self, config):
        self.generative_head = FlowHead(config)
