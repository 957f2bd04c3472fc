"""What recomputation must not leave behind."""

import torch
from support.recipes import TINY

from model.loss import training_losses
from model.transformer import CausalLM


def test_nothing_of_a_layer_outlives_its_backward_pass() -> None:
    """Recomputation ends as soon as it has what it needs, inside of the layer: before the balance loss is taken."""
    model = CausalLM(TINY)
    model.initialise(1)
    for block in model.blocks().values():
        block.recompute = True
    window = torch.randint(0, TINY.vocab_size, (2, 16 + 2))
    losses = training_losses(model(window[:, :-1], 1), window, ahead_weight=0.3, alpha=0.01)
    losses.total.backward()
    routings = [block.routing for block in model.blocks().values() if block.routing is not None]
    assert len(routings) == 3
    assert all(routing.balance_loss is None for routing in routings)
    assert all(routing.calls == 1 for routing in routings)
