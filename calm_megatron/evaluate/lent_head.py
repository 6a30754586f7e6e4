"""The head that an evaluation draws samples with, where a pipeline has spread it over several stages.

A sample may take a hundred calls of the whole head. So the stage that holds the head's input, and with it the hidden
states, is lent the weights of the stages behind it for the time of the evaluation; no activations travel.
"""

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from calm_megatron.model.calm import Calm
from calm_megatron.model.heads.head import Head
from calm_megatron.model.heads.kinds import build_head
from calm_megatron.parallel.pipeline_ranks import PipelineRanks


@torch.no_grad()
def lent_head(model: Calm, stages: PipelineRanks) -> Head | None:
    """The whole head, at the stage that holds its input; none elsewhere, and where the loss gives samples itself.

    All stages call together. The head is the model's own where that is whole, else a copy.
    """
    head = model.head
    if head.loss_has_samples:
        return None
    if stages.size == 1:
        return head
    # Each stage hands its part and all behind it to the stage before: the head's weights in their order.
    own = list(head.parameters())
    parts = [parameters_to_vector(own)] if own else []
    if head.is_here and head.output is None:
        parts.append(stages.receive_from(stages.rank + 1))
    if head.input is None:
        if head.is_here:
            stages.send(torch.cat(parts), stages.rank - 1)
        return None
    if head.output is not None:
        return head
    whole = build_head(model.config, model.ranks).to(parts[0])
    vector_to_parameters(torch.cat(parts), whole.parameters())
    return whole.eval()
