"""calm_megatron: pretrain continuous autoregressive language models at scale."""
