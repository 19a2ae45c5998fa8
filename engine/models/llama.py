"""Llama 2 and 3, and the models of their shape: SmolLM2, TinyLlama (Touvron et al. 2023; Grattafiori et al. 2024).

h = embed(tokens)
for each layer:  h += attention(rms_norm(h));  h += mlp(rms_norm(h))
logits = rms_norm(h) @ head.T
"""

from __future__ import annotations

from tinycluster.engine.models.spec import ModelConfig
from tinycluster.engine.models.stage import Stage
from tinycluster.kernels.program import Program
from tinycluster.parallel.layers import (
    ColumnParallelLinear,
    ProgramBuilder,
    RowParallelLinear,
    VocabParallelEmbedding,
    VocabParallelHead,
)
from tinycluster.parallel.units import MLP_UNIT, Shares, Split, WeightSpec


def build(config: ModelConfig, stage: Stage, shares: Shares) -> tuple[Program, tuple[WeightSpec, ...]]:
    D, C, V = config.hidden_size, config.head_dim, config.vocab_size
    heads = Split("head", config.num_attention_heads * C, C)
    kv_heads = Split("kv_head", config.num_key_value_heads * C, C)
    mlp = Split("mlp", config.intermediate_size, MLP_UNIT)
    attention_bias, mlp_bias = config.attention_bias, config.mlp_bias
    b = ProgramBuilder(shares, num_layers=len(stage.layers), head_dim=C)

    if stage.is_first:
        VocabParallelEmbedding("model.embed_tokens.weight", V, D)(b, out="hidden")
    else:
        b.recv("hidden", D)

    for index, layer in enumerate(stage.layers):
        block = f"model.layers.{layer}"
        b.rms_norm("hidden", f"{block}.input_layernorm.weight", config.rms_norm_eps, out="normed")
        ColumnParallelLinear(f"{block}.self_attn.q_proj", D, heads, attention_bias)(b, "normed", out="q")
        ColumnParallelLinear(f"{block}.self_attn.k_proj", D, kv_heads, attention_bias)(b, "normed", out="k")
        ColumnParallelLinear(f"{block}.self_attn.v_proj", D, kv_heads, attention_bias)(b, "normed", out="v")
        b.rope("q")
        b.rope("k")
        b.attention("q", "k", "v", layer=index, window=None, out="attended")
        RowParallelLinear(f"{block}.self_attn.o_proj", heads, D, attention_bias)(b, "attended", residual="hidden")

        b.rms_norm("hidden", f"{block}.post_attention_layernorm.weight", config.rms_norm_eps, out="normed")
        ColumnParallelLinear(f"{block}.mlp.gate_proj", D, mlp, mlp_bias)(b, "normed", out="gate")
        ColumnParallelLinear(f"{block}.mlp.up_proj", D, mlp, mlp_bias)(b, "normed", out="up")
        b.swiglu("gate", "up", out="activated")
        RowParallelLinear(f"{block}.mlp.down_proj", mlp, D, mlp_bias)(b, "activated", residual="hidden")

    if not stage.is_last:
        b.send("hidden")
        return b.finish()
    b.gather_rows("hidden", out="last")
    b.rms_norm("last", "model.norm.weight", config.rms_norm_eps, out="last_normed")
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    VocabParallelHead(head, V, D)(b, "last_normed", out="logits")
    return b.finish(output="logits")
