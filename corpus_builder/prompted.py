"""CLIP's text tower with learned prompts: tokens of their own in every block, before the words (`alt finetune`).

The form is that of deep prompts (VPT, arXiv 2203.12119; on both towers in MaPLe, arXiv 2210.03117, and ViFi-CLIP,
arXiv 2212.03640): they stand behind the start token, each block has its own, and what a block makes of them is thrown
away. So they need not be computed at all: they are keys and values that every token but the start token sees. The words
keep their places, where those works move them on by the number of prompts and so shorten the context.

Notation used for tensor shapes: texts b, tokens of a text t, prompts of a block n.
"""

from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int
from open_clip.transformer import ResidualAttentionBlock, text_global_pool
from torch import Tensor

from corpus_builder.config import CorpusError


def check_promptable(model: Any) -> None:
    """Raises :class:`CorpusError` for a text tower of another build than CLIP's: causal, pooled at the end mark."""
    plain = isinstance(model, open_clip.CLIP) and model.attn_mask is not None
    if not plain or any(type(block) is not ResidualAttentionBlock for block in model.transformer.resblocks):
        raise CorpusError(
            f"text prompts need the text tower of a CLIP, the model is a {type(model).__name__} of another build; "
            "choose another model, or no text prompts"
        )


def prompted_features(
    model: Any, tokens: Int[Tensor, "texts context"], prompts: Float[Tensor, "blocks prompts width"]
) -> Float[Tensor, "texts dim"]:
    """``model.encode_text`` with prompts in its blocks; ``tokens`` may be cut behind the last end mark.

    With gradients to the prompts where they are on. Raises :class:`CorpusError` as ``check_promptable`` does.
    """
    check_promptable(model)
    length = tokens.shape[1]
    seen = prompts.new_zeros(length, prompts.shape[1])
    seen[0] = -torch.inf
    mask = torch.cat([model.attn_mask[:length, :length], seen], dim=1)
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    for block, own in zip(model.transformer.resblocks, prompts, strict=True):
        asked = block.ln_1(x)
        keys = torch.cat([asked, block.ln_1(own).to(asked.dtype).expand(len(x), -1, -1)], dim=1)
        mixed, _ = block.attn(asked, keys, keys, need_weights=False, attn_mask=mask.to(asked.dtype))
        x = x + block.ls_1(mixed)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    eos = getattr(model, "text_eos_id", None)
    pooled = text_global_pool(model.ln_final(x), tokens, model.text_pool_type, eos_token_id=eos)
    projection = model.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, torch.nn.Linear) else pooled @ projection
